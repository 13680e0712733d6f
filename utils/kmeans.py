"""k-means (Lloyd, 1982), plain and spherical, of features, on any device and any number of ranks.

Each rank computes its share of the rows. Shares are made of parts that do not depend on the number of ranks, what is
added up over parts are integers, and what is joined is in the order of the rows: centroids and ids are equal to the
bit on 1 and on W ranks that compute alike (one kind of processor, one number of threads). Every rank must call.

Nine tenths of an iteration are the product of rows and centroids. It is made in chunks, whose lowest entries are found
while they are in the cache, and is all that an iteration needs. Distances that are returned, and the last objective,
are of vectors that were subtracted: 0 where they should be.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from utils.distributed import gather, rank, sum_over_ranks
from utils.errors import UserError, did_you_mean
from utils.shares import Rows, fetch, gather_rows, part_count, parts, share, sum_integers, unit_of_sums

CPU = torch.device("cpu")  # also in place of Apple's GPU, which has no float64
AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # products of rows and centroids in memory
ROWS = {"cpu": 2**12, "cuda": 2**16}  # rows of such a chunk at most; on CPU the fastest with K = 100 and K = 1000
SMALL = 2**20  # coordinates of rows that fit into the cache
CANDIDATES = 1024  # at most drawn together by k-means++
STARTS = ("kmeans++", "subset")


class KMeans(NamedTuple):
    """centroids: (K, D) float32 on CPU. reseeded: empty clusters that were re-seeded, in all iterations together.

    objective: mean squared distance of a row to its centroid, of the start, then after each iteration (new centroids,
    new assignment); the last is that of `centroids`. Those before are right to 1e-7 of the variance of the rows.
    """

    centroids: Tensor
    objective: list[float]
    reseeded: int


class RowFacts(NamedTuple):
    """hashes: (N,) int64 on CPU, equal for equal rows. largest: magnitude of a coordinate."""

    hashes: Tensor
    largest: float


# (begin, x, facts, iterations, title) -> all but the last assignment and its objective
Iterate = Callable[[Tensor, Rows, RowFacts, int, str], KMeans]


def lloyd(c: Tensor, x: Rows, facts: RowFacts, iterations: int, title: str = "", spherical: bool = False) -> KMeans:
    """Lloyd's iterations from the centroids c; all but the last assignment and its objective."""
    shift, before, scores, reseeded = c.mean(dim=0), None, [], 0
    for _ in tqdm(range(iterations), title, leave=False, disable=None if title and rank() == 0 else True):
        c, ids, means, score, empty = _reassign_empty(c, x, shift, facts)
        reseeded += empty
        changed = before is None or not torch.equal(ids, before)
        if not sum_over_ranks(torch.tensor(int(changed), device=c.device)):
            break
        before, c = ids, F.normalize(means, dim=1) if spherical else means
        scores.append(score)
    local = _distance(x, shift[None], torch.zeros_like(ids))
    spread = gather_rows(local, x, c.device).sum(dtype=torch.float64).item()
    return KMeans(c, [max(0.0, (spread + score) / len(x)) for score in scores], reseeded)


def spherical_lloyd(c: Tensor, x: Rows, facts: RowFacts, iterations: int, title: str = "") -> KMeans:
    """Iterations of spherical k-means (Dhillon and Modha, 2001) of unit rows: centroids are scaled to unit length.

    The nearest of unit centroids is the one with the largest cosine.
    """
    return lloyd(c, x, facts, iterations, title, spherical=True)


def kmeans(
    x: Rows,
    k: int,
    iterations: int = 50,
    seed: int = 0,
    device: torch.device = CPU,
    start: str = "kmeans++",
    title: str = "",
    iterate: Iterate = lloyd,
) -> KMeans:
    """(N, D) rows, wherever they are -> k centroids, computed on `device`, one result for a seed, on every rank.

    It ends after `iterations`, or when no row changes its cluster. A title shows a progress bar on the first rank.
    A centroid that is nearest to no row is put on the row farthest from its own, so no cluster is empty in the end
    unless rows differ by rounding only. x with fewer than k rows, not counting repetitions, is refused.
    Start "kmeans++" takes as long as 2 iterations (N = 50,000, k = 1000) and ended 44 % lower than "subset", k random
    rows, where clusters lie apart, 3 % lower on features of an untrained ResNet-18 with k = N / 10, equal on digits.
    """
    check_choice(start, STARTS)
    device = device if device.type in AT_ONCE else CPU
    facts = _checked(x, k, iterations, device)
    begin = fetch(x, _start(x, k, start, facts, torch.Generator().manual_seed(seed), device), device)
    return _run(begin, x, facts, iterations, iterate, title)


def check_choice(name: str, known: Collection[str]) -> None:
    """Refuse a name that is none of the known ones."""
    if name not in known:
        raise UserError(f"unknown choice {name!r}; choose one of {', '.join(known)}{did_you_mean(name, known)}")


def assign(x: Rows, centroids: Tensor, device: torch.device = CPU, at_once: int | None = None) -> tuple[Tensor, Tensor]:
    """(N, D) rows, (K, D) centroids -> (N,) the nearest, the lowest of equals; (N,) squared distances; both on CPU.

    `at_once` bounds the products in memory. Each rank assigns its share, and all get all.
    """
    if x.ndim != 2 or x.shape[1:] != centroids.shape[1:]:
        shapes = f"features of shape {tuple(x.shape)} came for centroids of shape {tuple(centroids.shape)}"
        raise UserError(f"{shapes}, the widths must be equal; take the features from the backbone of the centroids")
    centroids = centroids.to(device if device.type in AT_ONCE else CPU, torch.float32)
    ids, distance = (gather_rows(local, x, centroids.device) for local in _assign(x, centroids, at_once))
    if wrong := int((~distance.isfinite()).sum()):
        raise UserError(f"{wrong} of {len(x)} rows of features are not finite, all must be; did training diverge?")
    return ids, distance


def _checked(x: Rows, k: int, iterations: int, device: torch.device) -> RowFacts:
    """Refuse what cannot be clustered. A hash is the sum of the bits of coordinates, each times its own odd number."""
    if x.ndim != 2 or iterations < 1:
        raise UserError(f"(N, D) features and 1 iteration or more are needed, not {tuple(x.shape)} and {iterations}")
    if not 2 <= k <= len(x):
        why = "a cluster of everything teaches nothing" if k < 2 else "some would be empty"
        raise UserError(f"k={k} clusters of {len(x)} rows: {why}; choose k from 2 to {len(x)}")
    odd = torch.randint(-(2**62), 2**62, x.shape[1:], generator=torch.Generator().manual_seed(0)).to(device) * 2 + 1
    numbers, wrong, largest = [torch.empty(0, dtype=torch.long)], 0, 0.0
    for part in parts(x, device, SMALL):
        wrong += int((~(4 * part).square().sum(dim=1).isfinite()).sum())  # |x - c|^2 must not overflow either
        largest = max(largest, part.abs().max().item())
        numbers.append(((part + 0.0).view(torch.int32) * odd).sum(dim=1).cpu())  # 0.0: -0.0 has other bits
    of_ranks = gather(torch.tensor([[wrong, largest]], dtype=torch.float64, device=device))
    if wrong := int(of_ranks[:, 0].sum()):
        raise UserError(f"{wrong} of {len(x)} rows of features are not finite, all must be; did training diverge?")
    hashes = gather_rows(torch.cat(numbers), x, device)
    if (distinct := len(hashes.unique())) < k:
        hint = "did training collapse?" if distinct == 1 else f"lower k to {distinct} or less"
        raise UserError(f"{len(x)} rows of features hold {distinct} distinct ones, k={k} needs {k} of them; {hint}")
    return RowFacts(hashes, of_ranks[:, 1].max().item())


def _first_of_equals(order: Tensor, row_hashes: Tensor) -> Tensor:
    """Rows in this order, without those that repeat an earlier one."""
    return order[np.sort(np.unique(row_hashes[order].numpy(), return_index=True)[1])]


def _start(x: Rows, k: int, start: str, facts: RowFacts, generator: torch.Generator, device: torch.device) -> Tensor:
    """(k,) rows, no two equal, at random or by k-means++: each with probability ~ distance^2 to those before.

    Candidates are drawn together, as many as rows are chosen, from the distances known then; one stays with
    probability distance^2 now / then. So each has the paper's probability, in about log2(k) passes over x for its k.
    """
    order = torch.randperm(len(x), generator=generator)
    chosen = new = order[:1]
    distance = torch.full((len(x),), torch.inf)
    while start == "kmeans++" and len(chosen) < k:
        local = _assign(x, fetch(x, new, device))[1]
        distance = torch.minimum(distance, gather_rows(local, x, device))
        if not bool(distance.any()):  # all other rows differ by less than a float32 can square
            break
        new = _candidates(x, distance, min(len(chosen), CANDIDATES), generator, device)
        chosen = torch.cat([chosen, new])
    return _first_of_equals(torch.cat([chosen, order]), facts.hashes)[:k]


def _candidates(
    x: Rows, distance: Tensor, count: int, generator: torch.Generator, device: torch.device = CPU
) -> Tensor:
    """Draw `count` rows with probability ~ distance (squared), and keep some; the first one always."""
    upto = distance.cumsum(dim=0, dtype=torch.float64)
    dice = torch.rand(2, count, dtype=torch.float64, generator=generator)
    drawn = torch.searchsorted(upto, dice[0] * upto[-1], right=True).clamp(max=len(x) - 1)
    rows = fetch(x, drawn, device).cpu().double()
    apart = torch.cdist(rows, rows).square()
    now, bar, stay = distance[drawn].double(), dice[1] * distance[drawn], []
    for i in range(count):
        if bar[i] < now[i]:
            stay.append(i)
            now = torch.minimum(now, apart[i])
    kept = torch.zeros(count, dtype=torch.long, device=device)
    kept[stay] = int(rank() == 0)  # whose choice it is: another kind of processor may round otherwise
    return drawn[sum_over_ranks(kept).cpu() > 0]


def _run(begin: Tensor, x: Rows, facts: RowFacts, iterations: int, iterate: Iterate = lloyd, title: str = "") -> KMeans:
    """k-means from the centroids `begin`, on their device."""
    run = iterate(begin, x, facts, iterations, title)
    centroids, ids, _, _, more = _reassign_empty(run.centroids, x, run.centroids.mean(dim=0), facts)
    last = gather_rows(_distance(x, centroids, ids), x, centroids.device).mean(dtype=torch.float64).item()
    return KMeans(centroids.cpu(), [*run.objective, last], run.reseeded + more)


def _reassign_empty(c: Tensor, x: Rows, shift: Tensor, facts: RowFacts) -> tuple[Tensor, Tensor, Tensor, float, int]:
    """Assign; put the centroids of empty clusters on the farthest rows, no two on equal ones, and assign again.

    Gives centroids, ids of this rank's rows, the means of their rows, which are the next centroids, score, and how
    many were empty. Once is enough, unless another cluster lost all its rows by that. It ends, as such centroids stay
    on their rows.
    """
    reseeded, before = 0, torch.inf
    while True:
        ids, sums, size, score = _assign_and_sum(x, c, shift, facts)
        if not len(empty := (size == 0).nonzero()[:, 0]):
            break
        distance = gather_rows(_distance(x, c, ids), x, c.device)
        total = distance.sum(dtype=torch.float64).item()
        if total >= before:  # rows on which a centroid was put differ from another by rounding
            break
        far = _first_of_equals(distance.argsort(descending=True, stable=True), facts.hashes)[: len(empty)]
        c, before, reseeded = c.clone(), total, reseeded + len(far)
        c[empty] = fetch(x, far, c.device)
    return c, ids, torch.where(size[:, None] > 0, sums / size[:, None], c).float(), score, reseeded


def _assign(x: Rows, centroids: Tensor, at_once: int | None = None) -> tuple[Tensor, Tensor]:
    """(n,) the nearest centroids of this rank's rows, and squared distances, on CPU."""
    scores = _Scores(centroids, centroids.mean(dim=0), at_once)
    ids = [scores.nearest(part)[0].cpu() for part in parts(x, scores.device)]
    local = torch.cat([torch.empty(0, dtype=torch.long), *ids])
    return local, _distance(x, centroids, local)


def _assign_and_sum(x: Rows, centroids: Tensor, shift: Tensor, facts: RowFacts) -> tuple[Tensor, Tensor, Tensor, float]:
    """One pass: (n,) ids of this rank's rows on CPU; of all rows (K, D) float64 sums of the rows of each cluster, (K,)
    their number, and the sum of scores.
    """
    k, device, scores = len(centroids), centroids.device, _Scores(centroids, shift)
    unit = unit_of_sums(len(x) * facts.largest)
    sums, ids = torch.zeros_like(centroids, dtype=torch.long), [torch.empty(0, dtype=torch.long, device=device)]
    score = torch.zeros(part_count(x), dtype=torch.float64, device=device)
    for number, part in zip(share(len(score)), parts(x, device), strict=True):
        near, score[number] = scores.nearest(part)
        ids.append(near)
        sums += _sums(near, part, k).div_(unit).long()
    local = torch.cat(ids).cpu()
    size = torch.bincount(local, minlength=k).to(device)
    sums, size, bits = sum_integers(sums, size, score.view(torch.long))  # a score is that of one rank, others have 0
    return local, sums.double() * unit, size, bits.view(torch.float64).sum().item()


class _Scores:
    """The score of row x and centroid c is  |x - c|^2 - |x - s|^2  =  |b|^2 + 2 s.b - 2 x.b,  b = c - s.

    A shift s amid the rows keeps the difference of two centroids from rounding where features are far from 0.
    """

    def __init__(self, centroids: Tensor, shift: Tensor, at_once: int | None = None):
        b, self.device = centroids.double() - shift, centroids.device
        self.offset = (b.square().sum(dim=1) + 2 * b @ shift.double()).float()
        self.b = b.float().T.contiguous()
        rows = (at_once or AT_ONCE[self.device.type]) // len(centroids)
        self.room = self.b.new_empty(max(1, min(rows, ROWS[self.device.type])), len(centroids))

    def nearest(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) rows -> (N,) centroids of the lowest score, the first of equals; the sum of these scores, float64."""
        near, total = [], self.offset.new_zeros((), dtype=torch.float64)
        for rows in part.split(len(self.room)):
            scores = torch.addmm(self.offset, rows, self.b, alpha=-2, out=self.room[: len(rows)])
            # numpy's argmin takes a ninth of the time of torch's on CPU; both give the first of equals
            near.append(scores.argmin(dim=1) if scores.is_cuda else torch.from_numpy(scores.numpy().argmin(axis=1)))
            total += scores.gather(1, near[-1][:, None]).sum(dtype=torch.float64)
        return torch.cat(near), total


def _sums(ids: Tensor, rows: Tensor, k: int, block: int = 64) -> Tensor:
    """(k, D) float64 sums of the rows of each cluster, in their order (index_add_ on CUDA adds in any).

    Float32 adds up blocks of rows, which costs nothing in accuracy, float64 the blocks.
    """
    order, size = ids.argsort(stable=True), torch.bincount(ids, minlength=k)
    place = torch.arange(len(ids), device=ids.device) - (size.cumsum(dim=0) - size)[ids[order]]  # within its cluster
    blocks = F.embedding_bag(order, rows, (place % block == 0).nonzero()[:, 0], mode="sum").double()
    size = (size + block - 1) // block
    return F.embedding_bag(torch.arange(len(blocks), device=ids.device), blocks, size.cumsum(dim=0) - size, mode="sum")


def _distance(x: Rows, centroids: Tensor, ids: Tensor) -> Tensor:
    """(n,) squared distance of each of this rank's rows to the centroid of its id, on CPU."""
    distance, at = [torch.empty(0)], 0
    for part in parts(x, centroids.device, SMALL):
        rest = part - centroids[ids[at : at + len(part)].to(part.device)]
        distance.append(torch.linalg.vecdot(rest, rest).cpu())
        at += len(part)
    return torch.cat(distance)
