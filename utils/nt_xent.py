"""Losses on pairs of views of one image: what SimCLR's have in common, and the decoupled one (DCL)."""

import torch
from torch import Tensor

from utils.distributed import gather, rank
from utils.precision import full_precision, l2_normalize
from utils.row_chunks import map_row_chunks


def unit_views(views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Unit vectors (nV, D) of V views (n, D), ordered by image, then by view, and their rows (nV,) among all ranks'."""
    z = torch.stack([l2_normalize(x) for x in views], dim=1).flatten(0, 1)
    return z, torch.arange(len(z), device=z.device) + rank() * len(z)


def other_views(self_index: Tensor, v: int) -> Tensor:
    """Rows (m, V - 1) of the other views of the same image, for rows (m,) as `unit_views` orders V views."""
    image, view = self_index // v, self_index % v  # (m,)
    others = torch.arange(v - 1, device=self_index.device)
    others = others + (others >= view[:, None])  # (m, V - 1) the other views of the same image
    return image[:, None] * v + others


def log_normalizer(logits: Tensor, self_index: Tensor) -> Tensor:
    """log sum_{k != i} exp(logits_ik) for each row i: (m, NV) -> (m,). self_index: (m,) columns k = i."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits.index_put((rows, self_index), logits.new_full((), -torch.inf)).logsumexp(dim=1)


@full_precision
def decoupled_nt_xent(views: list[Tensor], temperature: float, sigma: float | None = None) -> dict[str, Tensor]:
    """DCL (Yeh et al., 2021, arXiv:2110.06848):  -w_ij z_i . z_j / T  +  log sum_k e(z_i . z_k),  e(s) = exp(s / T),
    mean over positive pairs (i, j): NT-Xent whose sum runs over the views k of other images only.

    views: V tensors (n, D), embeddings of V views of this rank's n images; N images in the global batch, at least two.
    sigma: None for w = 1. A number for the weights of DCLW, without gradient: w_ij = 2 - f(z_i . z_j) / mean f, where
    f(s) = exp(s / sigma) and the mean runs over the N positive pairs of the same two views. Their mean is 1.
    Deviation: the paper has two views; with more, the other ones of the image are left out of the sum too.
    """
    v = len(views)
    z, self_index = unit_views(views)
    all_z = gather(z)  # (NV, D)
    weights = z.new_ones(len(z), v - 1) if sigma is None else _mises_fisher_weights(all_z, v, sigma)[self_index]

    def terms(z: Tensor, self_index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        logits = z @ all_z.T / temperature  # (m, NV)
        positive = logits.gather(1, other_views(self_index, v))  # (m, V - 1)
        own = (self_index // v)[:, None] * v + torch.arange(v, device=z.device)  # (m, V) all views of the image
        return logits.scatter(1, own, -torch.inf).logsumexp(dim=1) - (weights * positive).mean(dim=1), positive

    loss, positive = map_row_chunks(terms, len(all_z), z, self_index, weights)
    return {"loss": loss.mean(), "positive_similarity": positive.mean() * temperature}


def _mises_fisher_weights(all_z: Tensor, v: int, sigma: float) -> Tensor:
    """Weights (NV, V - 1) of DCLW for each row i and the other views j of its image; all_z: (NV, D) of all ranks."""
    images: Tensor = all_z.detach().unflatten(0, (-1, v))  # (N, V, D)
    similarity = images @ images.transpose(1, 2)  # (N, V, V)
    weights = (2 - len(images) * (similarity / sigma).softmax(dim=0)).flatten(0, 1)  # (NV, V)
    rows = torch.arange(len(all_z), device=all_z.device)
    return weights.gather(1, other_views(rows, v) % v)
