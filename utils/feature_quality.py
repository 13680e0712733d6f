"""Quality of features without labels: how much of the space they use, and whether two views agree."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.errors import UserError

EPSILON = 1e-7  # of RankMe (eq. 1)
TINY = 1e-12  # share of the sum of squares under which a variance can be the rounding of float32 features


def rankme(x: Tensor) -> float:
    """RankMe (Garrido et al., 2023, arXiv:2210.02885, eq. 1):  exp(-sum_k p_k log p_k),  p_k = s_k / sum_j s_j + 1e-7

    x: (N, D), not centred. s: its min(N, D) singular values. From 1 (all rows on one line, or zero) to min(N, D),
    up to the 1e-7, which adds 0.001 to a rank of 1 at D = 512.
    """
    s = _squared_singular_values(_checked(x)).sqrt()
    p = s / s.sum().clamp(min=torch.finfo(s.dtype).tiny) + EPSILON
    return (-p * p.log()).sum().exp().item()


def alpha_req(x: Tensor) -> float:
    """alpha-ReQ (Agrawal et al., 2022): alpha of the power law  lambda_j ~ j^-alpha,  lambda: eigenvalues of Cov(x).

    x: (N, D). Least squares of log lambda_j on log j over all ranks j = 1 .. r whose eigenvalue is more than rounding;
    r <= min(N - 1, D). NaN if r < 2, as for constant features: one point has no slope.
    Deviation: the authors' library fits ranks 11 to 100, with weight 1 / j; here all ranks count, and count alike.
    """
    mean = _checked(x).mean(dim=0, dtype=torch.float64)
    spread = _squared_singular_values(x, mean)  # lambda times a constant, which has no part in the slope
    log_lambda = spread[spread > TINY * (spread.sum() + len(x) * mean.square().sum())].log()
    if len(log_lambda) < 2:
        return math.nan
    log_rank = torch.arange(1, len(log_lambda) + 1, dtype=torch.float64, device=x.device).log()
    log_rank -= log_rank.mean()
    return -(log_rank @ log_lambda / log_rank.square().sum()).item()


def alignment(a: Tensor, b: Tensor) -> float:
    """Alignment (Wang and Isola, 2020, arXiv:2005.10242, sec. 4.1.1, alpha = 2):  mean ||a_i - b_i||^2,  0 to 4.

    a, b: (M, D) features of two views of the same M images, normalized here.
    """
    if a.shape != b.shape:
        raise ValueError(f"two views need features of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    return (_unit(a) - _unit(b)).square().sum(dim=1).mean().item()


def uniformity(x: Tensor, at_once: int = 2**22) -> float:
    """Uniformity (Wang and Isola, 2020, sec. 4.1.2, t = 2):  log mean_{i < j} exp(-2 ||x_i - x_j||^2),  -8 to 0.

    x: (N, D), normalized here. 0 if all rows collapsed to one point, near -4 if directions are uniform and D is large.
    All pairs of rows, `at_once` distances in memory (or one row of them): time grows with N^2.
    """
    x = _unit(x)
    square, n, rows = x.square().sum(dim=1), len(x), max(1, at_once // len(x))
    parts = []
    for i in range(0, n, rows):
        distance = square[i : i + rows, None] + square[i:] - 2 * x[i : i + rows] @ x[i:].T  # (rows, n - i)
        done = torch.ones_like(distance, dtype=torch.bool).tril()  # a row with itself and with rows before it
        parts.append((-2 * distance).masked_fill_(done, -math.inf).flatten().logsumexp(dim=0))
    return torch.stack(parts).logsumexp(dim=0).item() - math.log(n * (n - 1) / 2)


def embedding_std(x: Tensor) -> float:
    """Standard deviation of a coordinate, mean over coordinates (Chen and He, 2021, arXiv:2011.10566, sec. 4.1).

    x: (N, D), normalized here. 0 if all rows collapsed to one point; at most 1 / sqrt(D), if all directions are used.
    """
    return _unit(x).std(dim=0, correction=0).mean().item()


def quality_numbers(x: Tensor, pair: tuple[Tensor, Tensor] | None = None) -> dict[str, float]:
    """All numbers by name. x: (N, D) features. pair: two (M, D), features of two views of the same M images."""
    numbers = {"rankme": rankme(x), "alpha_req": alpha_req(x), "uniformity": uniformity(x), "std": embedding_std(x)}
    return numbers if pair is None else {**numbers, "alignment": alignment(*pair)}


def _checked(x: Tensor) -> Tensor:
    if len(x) < 2:
        raise UserError(f"{len(x)} rows of features came, at least 2 are needed; evaluate on more images")
    if wrong := int((~x.isfinite()).any(dim=1).sum()):
        raise UserError(f"{wrong} of {len(x)} rows of features are not finite, all must be; did training diverge?")
    return x


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1 in float64; a row of zeros stays."""
    return F.normalize(_checked(x).double(), dim=1)


def _squared_singular_values(x: Tensor, centre: Tensor | float = 0.0, at_once: int = 2**14) -> Tensor:
    """Squared singular values of x - centre, (N, D), in float64, largest first, (min(N, D),).

    `at_once` rows are in float64 at a time. The D x D Gram matrix of more rows than columns loses what is under 1e-7 of
    the largest singular value: no more than the rounding of float32 features.
    """
    n, d = x.shape
    if n <= d:
        values: Tensor = torch.linalg.svdvals(x.double() - centre)
        return values.square()
    gram = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    for part in x.split(at_once):
        part = part.double() - centre
        gram += part.T @ part
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.flip(0).clamp(min=0)
