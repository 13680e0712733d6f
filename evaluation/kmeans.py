"""k-means (Lloyd, 1982) of features in memory, on any device; how even and how pure its clusters are.

Nine tenths of an iteration are the product of rows and centroids. It is made in chunks, whose lowest entries are found
while they are in the cache, and is all that an iteration needs. Distances that are returned, and the last objective,
are of vectors that were subtracted: 0 where they should be.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from utils.distributed import rank
from utils.errors import UserError, did_you_mean

CPU = torch.device("cpu")  # also in place of Apple's GPU, which has no float64
AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # products of rows and centroids in memory
ROWS = {"cpu": 2**12, "cuda": 2**16}  # rows of such a chunk at most; on CPU the fastest with K = 100 and K = 1000
PART = 2**24  # coordinates of rows on the device
SMALL = 2**20  # coordinates of rows that fit into the cache
CANDIDATES = 1024  # at most drawn together by k-means++


class KMeans(NamedTuple):
    """centroids: (K, D) float32 on CPU. reseeded: empty clusters that were re-seeded, in all iterations together.

    objective: mean squared distance of a row to its centroid, of the start, then after each iteration (new centroids,
    new assignment); the last is that of `centroids`. Those before are right to 1e-7 of the variance of the rows.
    """

    centroids: Tensor
    objective: list[float]
    reseeded: int


class Rows(Protocol):
    """(N, D) rows that are read part by part: a tensor, an array, a memory map, or what makes arrays when asked."""

    shape: Any
    ndim: int

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any) -> Any: ...


def kmeans(
    x: Tensor,
    k: int,
    iterations: int = 50,
    seed: int = 0,
    backend: str = "torch",
    device: torch.device = CPU,
    start: str = "kmeans++",
    title: str = "",
) -> KMeans:
    """(N, D) rows, wherever they are -> k centroids, computed on `device`, one result for a seed.

    It ends after `iterations`, or when no row changes its cluster. Backend "faiss" iterates on CPU, from the same
    start, until its objective stays. A title shows a progress bar on the first rank (torch only).
    A centroid that is nearest to no row is put on the row farthest from its own, so no cluster is empty in the end
    unless rows differ by rounding only. x with fewer than k rows, not counting repetitions, is refused.
    Start "kmeans++" takes as long as 2 iterations (N = 50,000, k = 1000) and ended 44 % lower than "subset", k random
    rows, where clusters lie apart, 3 % lower on features of an untrained ResNet-18 with k = N / 10, equal on digits.
    """
    for name, known in ((backend, BACKENDS), (start, STARTS)):
        if name not in known:
            raise UserError(f"unknown choice {name!r}; choose one of {', '.join(known)}{did_you_mean(name, known)}")
    device = device if device.type in AT_ONCE else CPU
    row_hashes = _checked(x, k, iterations, device)
    begin = _rows(x, _start(x, k, start, row_hashes, torch.Generator().manual_seed(seed), device), device)
    return _run(begin, x, row_hashes, iterations, backend, title)


def assign(x: Rows, centroids: Tensor, device: torch.device = CPU, at_once: int | None = None) -> tuple[Tensor, Tensor]:
    """(N, D) rows, (K, D) centroids -> (N,) the nearest, the lowest of equals; (N,) squared distances; both on CPU.

    `at_once` bounds the products in memory.
    """
    if x.ndim != 2 or x.shape[1:] != centroids.shape[1:]:
        shapes = f"features of shape {tuple(x.shape)} came for centroids of shape {tuple(centroids.shape)}"
        raise UserError(f"{shapes}, the widths must be equal; take the features from the backbone of the centroids")
    centroids = centroids.to(device if device.type in AT_ONCE else CPU, torch.float32)
    ids, distance = [torch.empty(0, dtype=torch.long)], [torch.empty(0)]
    for part in _parts(x, centroids.device, PART):
        ids.append(_assign_and_sum(part, centroids, centroids.mean(dim=0), at_once)[0])
        distance.append(_distance(part, centroids, ids[-1]))
    if wrong := int((~torch.cat(distance).isfinite()).sum()):
        raise UserError(f"{wrong} of {len(x)} rows of features are not finite, all must be; did training diverge?")
    return torch.cat(ids), torch.cat(distance)


def cluster_report(ids: Tensor, k: int) -> dict[str, float]:
    """(N,) ids -> rows in the smallest, the median and the largest of k clusters; how many clusters are empty."""
    size = torch.bincount(ids, minlength=k).double()
    numbers = {"smallest": size.min(), "median": size.quantile(0.5), "largest": size.max(), "empty": (size == 0).sum()}
    return {name: number.item() for name, number in numbers.items()}


def nmi(ids: Tensor, labels: Tensor) -> float:
    """Mutual information over the mean of both entropies, 0 to 1, of the rows whose label is known (not -1)."""
    return float(normalized_mutual_info_score(*_labelled(labels, ids)))


def purity(ids: Tensor, labels: Tensor) -> float:
    """Share of rows whose label is the commonest of their cluster, 0 to 1, of the rows whose label is known."""
    labels, ids = _labelled(labels, ids)
    k, classes = int(ids.max()) + 1, int(labels.max()) + 1
    counts = torch.bincount(ids * classes + labels, minlength=k * classes).view(k, classes)
    return counts.amax(dim=1).sum().item() / len(ids)


def _labelled(labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    if not bool((labels >= 0).any()):
        raise UserError(f"none of {len(labels)} rows has a label, NMI and purity need some; leave them out")
    return labels[labels >= 0], ids[labels >= 0]


def _rows(x: Rows, at: slice | Tensor, device: torch.device) -> Tensor:
    """Rows of x as float32 on the device. Those of an array are copied: a memory map may be read-only."""
    rows = x[at] if isinstance(x, Tensor) else torch.from_numpy(np.array(x[at], dtype=np.float32))
    return rows.to(device, torch.float32)


def _parts(x: Rows, device: torch.device, coordinates: int) -> Iterator[Tensor]:
    rows = max(1, coordinates // max(1, x.shape[1]))
    return (_rows(x, slice(i, i + rows), device) for i in range(0, len(x), rows))


def _checked(x: Tensor, k: int, iterations: int, device: torch.device) -> Tensor:
    """(N,) int64 on CPU, equal for equal rows: sum of the bits of coordinates, each times its own odd number."""
    if x.ndim != 2 or iterations < 1:
        raise UserError(f"(N, D) features and 1 iteration or more are needed, not {tuple(x.shape)} and {iterations}")
    if not 2 <= k <= len(x):
        why = "a cluster of everything teaches nothing" if k < 2 else "some would be empty"
        raise UserError(f"k={k} clusters of {len(x)} rows: {why}; choose k from 2 to {len(x)}")
    odd = torch.randint(-(2**62), 2**62, x.shape[1:], generator=torch.Generator().manual_seed(0)).to(device) * 2 + 1
    numbers, wrong = [], 0
    for part in _parts(x, device, SMALL):
        wrong += int((~(4 * part).square().sum(dim=1).isfinite()).sum())  # |x - c|^2 must not overflow either
        numbers.append(((part + 0.0).view(torch.int32) * odd).sum(dim=1).cpu())  # 0.0: -0.0 has other bits
    if wrong:
        raise UserError(f"{wrong} of {len(x)} rows of features are not finite, all must be; did training diverge?")
    if (distinct := len(torch.cat(numbers).unique())) < k:
        hint = "did training collapse?" if distinct == 1 else f"lower k to {distinct} or less"
        raise UserError(f"{len(x)} rows of features hold {distinct} distinct ones, k={k} needs {k} of them; {hint}")
    return torch.cat(numbers)


def _first_of_equals(order: Tensor, row_hashes: Tensor) -> Tensor:
    """Rows in this order, without those that repeat an earlier one."""
    return order[np.sort(np.unique(row_hashes[order].numpy(), return_index=True)[1])]


def _start(
    x: Tensor, k: int, start: str, row_hashes: Tensor, generator: torch.Generator, device: torch.device
) -> Tensor:
    """(k,) rows, no two equal, at random or by k-means++: each with probability ~ distance^2 to those before.

    Candidates are drawn together, as many as rows are chosen, from the distances known then; one stays with
    probability distance^2 now / then. So each has the paper's probability, in about log2(k) passes over x for its k.
    """
    order = torch.randperm(len(x), generator=generator)
    chosen = new = order[:1]
    distance = torch.full((len(x),), torch.inf)
    while start == "kmeans++" and len(chosen) < k:
        distance = torch.minimum(distance, assign(x, _rows(x, new, device), device)[1])
        if not bool(distance.any()):  # all other rows differ by less than a float32 can square
            break
        new = _candidates(x, distance, min(len(chosen), CANDIDATES), generator)
        chosen = torch.cat([chosen, new])
    return _first_of_equals(torch.cat([chosen, order]), row_hashes)[:k]


def _candidates(x: Tensor, distance: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` rows with probability ~ distance (squared), and keep some; the first one always."""
    upto = distance.cumsum(dim=0, dtype=torch.float64)
    dice = torch.rand(2, count, dtype=torch.float64, generator=generator)
    drawn = torch.searchsorted(upto, dice[0] * upto[-1], right=True).clamp(max=len(x) - 1)
    rows = _rows(x, drawn, CPU).double()
    apart = torch.cdist(rows, rows).square()
    now, bar, stay = distance[drawn].double(), dice[1] * distance[drawn], []
    for i in range(count):
        if bar[i] < now[i]:
            stay.append(i)
            now = torch.minimum(now, apart[i])
    return drawn[stay]


def _run(
    begin: Tensor, x: Tensor, row_hashes: Tensor, iterations: int, backend: str = "torch", title: str = ""
) -> KMeans:
    """k-means from the centroids `begin`, on their device."""
    run = BACKENDS[backend](begin, x, row_hashes, iterations, title)
    centroids, ids, _, _, more = _reassign_empty(run.centroids, x, run.centroids.mean(dim=0), row_hashes)
    last = _distance(x, centroids, ids).mean(dtype=torch.float64).item()
    return KMeans(centroids.cpu(), [*run.objective, last], run.reseeded + more)


def _lloyd(c: Tensor, x: Tensor, row_hashes: Tensor, iterations: int, title: str) -> KMeans:
    """All but the last assignment and its objective."""
    shift, before, scores, reseeded = c.mean(dim=0), None, [], 0
    for _ in tqdm(range(iterations), title, leave=False, disable=None if title and rank() == 0 else True):
        c, ids, means, score, empty = _reassign_empty(c, x, shift, row_hashes)
        reseeded += empty
        if before is not None and torch.equal(ids, before):
            break
        before, c = ids, means
        scores.append(score)
    spread = _distance(x, shift[None], torch.zeros_like(ids)).sum(dtype=torch.float64).item()
    return KMeans(c, [max(0.0, (spread + score) / len(x)) for score in scores], reseeded)


def _faiss(c: Tensor, x: Tensor, row_hashes: Tensor, iterations: int, title: str) -> KMeans:
    """Lloyd's iterations by faiss on CPU, with as many threads as torch."""
    try:
        import faiss
    except ImportError as e:
        raise UserError("backend faiss needs faiss: pip install -r requirements-faiss.txt") from e
    faiss.omp_set_num_threads(torch.get_num_threads())
    every_row = {
        "min_points_per_centroid": 1,
        "max_points_per_centroid": len(x),
    }  # takes all rows, and warns of nothing
    run: Any = faiss.Kmeans(x.shape[1], len(c), niter=iterations, **every_row)
    run.train(_rows(x, slice(None), CPU).numpy(), init_centroids=c.cpu().numpy())
    empty = sum(stats["nsplit"] for stats in run.iteration_stats)
    return KMeans(torch.from_numpy(run.centroids).to(c.device), (run.obj / len(x)).tolist(), empty)


def _reassign_empty(
    c: Tensor, x: Tensor, shift: Tensor, row_hashes: Tensor
) -> tuple[Tensor, Tensor, Tensor, float, int]:
    """Assign; put the centroids of empty clusters on the farthest rows, no two on equal ones, and assign again.

    Gives centroids, ids, the means of their rows, which are the next centroids, score, and how many were empty.
    Once is enough, unless another cluster lost all its rows by that. It ends, as such centroids stay on their rows.
    """
    reseeded, before = 0, torch.inf
    while True:
        ids, sums, score = _assign_and_sum(x, c, shift)
        size = torch.bincount(ids, minlength=len(c))
        if not len(empty := (size == 0).nonzero()[:, 0]):
            break
        distance = _distance(x, c, ids)
        total = distance.sum(dtype=torch.float64).item()
        if total >= before:  # rows on which a centroid was put differ from another by rounding
            break
        far = _first_of_equals(distance.argsort(descending=True, stable=True), row_hashes)[: len(empty)]
        c, before, reseeded = c.clone(), total, reseeded + len(far)
        c[empty] = _rows(x, far, c.device)
    size = size[:, None].to(c.device)
    return c, ids, torch.where(size > 0, sums / size, c).float(), score, reseeded


def _assign_and_sum(
    x: Tensor, centroids: Tensor, shift: Tensor, at_once: int | None = None
) -> tuple[Tensor, Tensor, float]:
    """One pass: (N,) ids on CPU, (K, D) float64 sums of the rows of each cluster, sum of the scores of all rows.

    The score of row x and centroid c is  |x - c|^2 - |x - s|^2  =  |b|^2 + 2 s.b - 2 x.b,  b = c - s.  A shift s amid
    the rows keeps the difference of two centroids from rounding where features are far from 0.
    """
    k, b = len(centroids), centroids.double() - shift
    offset, b = (b.square().sum(dim=1) + 2 * b @ shift.double()).float(), b.float().T.contiguous()
    room = b.new_empty(max(1, min((at_once or AT_ONCE[b.device.type]) // k, ROWS[b.device.type])), k)
    ids, sums, score = [], torch.zeros_like(centroids, dtype=torch.float64), offset.new_zeros((), dtype=torch.float64)
    for part in _parts(x, b.device, PART):
        near = []
        for rows in part.split(len(room)):
            scores = torch.addmm(offset, rows, b, alpha=-2, out=room[: len(rows)])
            # numpy's argmin takes a ninth of the time of torch's on CPU; both give the first of equals
            near.append(scores.argmin(dim=1) if b.is_cuda else torch.from_numpy(scores.numpy().argmin(axis=1)))
            score += scores.gather(1, near[-1][:, None]).sum(dtype=torch.float64)
        ids.append(torch.cat(near))
        sums += _sums(ids[-1], part, k)
    return torch.cat(ids).cpu(), sums, score.item()


def _sums(ids: Tensor, rows: Tensor, k: int, block: int = 64) -> Tensor:
    """(k, D) float64 sums of the rows of each cluster, in their order (index_add_ on CUDA adds in any).

    Float32 adds up blocks of rows, which costs nothing in accuracy, float64 the blocks.
    """
    order, size = ids.argsort(stable=True), torch.bincount(ids, minlength=k)
    place = torch.arange(len(ids), device=ids.device) - (size.cumsum(dim=0) - size)[ids[order]]  # within its cluster
    blocks = F.embedding_bag(order, rows, (place % block == 0).nonzero()[:, 0], mode="sum").double()
    size = (size + block - 1) // block
    return F.embedding_bag(torch.arange(len(blocks), device=ids.device), blocks, size.cumsum(dim=0) - size, mode="sum")


def _distance(x: Tensor, centroids: Tensor, ids: Tensor) -> Tensor:
    """(N,) squared distance of each row to the centroid of its id, on CPU."""
    distance, at = [torch.empty(0)], 0
    for part in _parts(x, centroids.device, SMALL):
        rest = part - centroids[ids[at : at + len(part)].to(part.device)]
        distance.append(torch.linalg.vecdot(rest, rest).cpu())
        at += len(part)
    return torch.cat(distance)


STARTS = ("kmeans++", "subset")
BACKENDS = {"torch": _lloyd, "faiss": _faiss}
