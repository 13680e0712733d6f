"""k-means of features by torch or faiss; how even and how pure its clusters are."""

from typing import Any

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from utils import kmeans as by_torch
from utils.distributed import run_on_first_rank, sum_over_ranks
from utils.errors import UserError
from utils.kmeans import CPU, Iterate, KMeans, RowFacts, check_choice, lloyd
from utils.shares import Rows, RowsInMemory, part_count


def kmeans(
    x: Rows,
    k: int,
    iterations: int = 50,
    seed: int = 0,
    backend: str = "torch",
    device: torch.device = CPU,
    start: str = "kmeans++",
    title: str = "",
) -> KMeans:
    """`utils.kmeans.kmeans`, whose iterations a backend computes.

    Backend "faiss" iterates on CPU, from the same start, until its objective stays, without a progress bar.
    """
    check_choice(backend, BACKENDS)
    return by_torch.kmeans(x, k, iterations, seed, device, start, title, BACKENDS[backend])


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


def _faiss(c: Tensor, x: Rows, facts: RowFacts, iterations: int, title: str = "") -> KMeans:
    """Lloyd's iterations by faiss on the CPU of the first rank, with as many threads as torch."""
    try:
        import faiss
    except ImportError as e:
        raise UserError("backend faiss needs faiss: pip install -r requirements-faiss.txt") from e

    def iterate() -> KMeans:
        faiss.omp_set_num_threads(torch.get_num_threads())
        every_row = {
            "min_points_per_centroid": 1,
            "max_points_per_centroid": len(x),
        }  # takes all rows, and warns of nothing
        run: Any = faiss.Kmeans(x.shape[1], len(c), niter=iterations, **every_row)
        run.train(RowsInMemory(x, CPU, range(part_count(x))).kept.numpy(), init_centroids=c.cpu().numpy())
        empty = sum(stats["nsplit"] for stats in run.iteration_stats)
        return KMeans(torch.from_numpy(run.centroids).to(c.device), (run.obj / len(x)).tolist(), empty)

    result = run_on_first_rank(iterate) or KMeans(torch.zeros_like(c), [], 0)
    return result._replace(centroids=sum_over_ranks(result.centroids))


BACKENDS: dict[str, Iterate] = {"torch": lloyd, "faiss": _faiss}
