"""kNN: weighted nearest neighbours of features (Wu et al., 2018, arXiv:1805.01978, sec. 3.4)."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.average_precision import mean_average_precision
from evaluation.features import FeatureSet
from evaluation.settings import Note, TrainingLabels, feasible_values
from evaluation.target import EvaluationTarget
from utils.arg_types import positive_int
from utils.distributed import gather, raise_together, world_size
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.scores import Score
from utils.shares import share

TEMPERATURE = 0.07  # of the weights
DEFAULT_K = (20, 200)
BLOCK = 2**13  # rows of the bank in one product; ranks share blocks out, so it must not depend on their number
CPU = torch.device("cpu")


@dataclass(frozen=True)
class KnnSettings:
    """k: the numbers of neighbours to evaluate with."""

    k: tuple[int, ...]


def add_knn_flags(group: FlagGroup) -> None:
    """Flags of the kNN evaluation."""
    defaults = " ".join(map(str, DEFAULT_K))
    group.add_argument("--knn_k", type=positive_int, nargs="+", metavar="K",
                       help=f"numbers of nearest neighbours (default: {defaults}, where labels allow)")  # fmt: skip


def knn_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> KnnSettings:
    """The settings that the flags ask for and the labels allow."""
    limit = "labelled training images"
    return KnnSettings(feasible_values("knn_k", flags.knn_k, DEFAULT_K, labels.labelled, limit, note))


def knn(target: EvaluationTarget, settings: KnnSettings) -> list[Score]:
    """Top-1 accuracy of weighted nearest neighbours, for each k; of several labels the mean average precision."""
    if not settings.k:
        return []
    train, val = target.labelled_train, target.labelled_val
    if train.y.ndim == 2:
        precisions = knn_map(train, val, settings.k, target.device, shared=True)
        return [Score(f"knn_{k}/map", precision) for k, precision in precisions.items()]
    accuracies = knn_accuracy(train, val, settings.k, target.classes, target.device, shared=True)
    return [Score(f"knn_{k}", accuracy) for k, accuracy in accuracies.items()]


def neighbours(
    bank: Tensor, queries: Tensor, k: int, device: torch.device = CPU, at_once: int = 2**26, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows: (M, D) bank, (N, D) queries -> cosines (N, k), rows of the bank (N, k), on CPU.

    Nearest first, equally near ones by their row. `at_once` bounds the similarities in memory: the whole N x M matrix
    is never made. shared: every rank calls with the same rows, searches its share of the bank and gets all; they are
    the neighbours of one process, since similarities are computed in blocks that do not depend on the number of ranks.
    """
    blocks = bank.split(BLOCK)
    numbers = share(len(blocks)) if shared else range(len(blocks))
    found, error = [], None
    try:
        own = [F.normalize(blocks[number].to(device), dim=1) for number in numbers]
        chunks = queries.split(max(1, at_once // len(bank)))
        found += [_search(F.normalize(chunk.to(device), dim=1), own, numbers.start * BLOCK, k) for chunk in chunks]
    except Exception as e:
        error = e
    if shared:
        raise_together(error)
    elif error is not None:
        raise error
    values, rows = (torch.cat(part) for part in zip(*found, strict=True))
    return _merge(values, rows, k) if shared else (values.cpu(), rows.cpu())


def _search(queries: Tensor, blocks: Sequence[Tensor], first: int, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and rows (n, k) of the nearest rows of consecutive blocks; first: number of the first one's first row.

    Where there are fewer than k rows, the last cosines are -inf.
    """
    cosines = queries.new_empty(len(queries), max(k, sum(map(len, blocks))))
    at = 0
    for block in blocks:  # products of one size, as rounding may depend on it
        torch.mm(queries, block.T, out=cosines[:, at : at + len(block)])
        at += len(block)
    cosines[:, at:] = -torch.inf
    values, columns = _top(cosines, k)
    return values, columns + first


def _merge(values: Tensor, rows: Tensor, k: int, at_once: int = 2**13) -> tuple[Tensor, Tensor]:
    """The k nearest of the (N, k) cosines and rows that each rank has found, on CPU on every rank."""
    merged = []
    for near, found in zip(values.split(at_once), rows.split(at_once), strict=True):
        of_ranks = [torch.cat(gather(x.contiguous()).chunk(world_size()), dim=1) for x in (near, found)]
        best, order = _top(of_ranks[0], k)
        merged.append((best.cpu(), of_ranks[1].gather(1, order).cpu()))
    best, rows = (torch.cat(part) for part in zip(*merged, strict=True))
    return best, rows


def _top(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row of x (n, M) and their columns: largest first, equal ones by their column.

    torch.topk alone leaves open which of equal entries it takes, and in which order.
    """
    top = x.topk(min(k + 1, x.shape[1]), dim=1)
    values, columns = top.values[:, :k], top.indices[:, :k]
    if x.shape[1] > k:
        open_choice = (top.values[:, k] == values[:, k - 1]).nonzero()[:, 0]  # the first that is left out is as large
        if len(open_choice):
            columns[open_choice] = _first_largest(x[open_choice], values[open_choice, -1:], k)
    columns = columns.sort(dim=1).values
    values, order = x.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _first_largest(x: Tensor, least: Tensor, k: int) -> Tensor:
    """Columns (n, k) of the entries above `least` (n, 1), the k-th largest, and of the first that are equal to it."""
    above, equal = x > least, x == least
    missing = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= missing))
    return chosen.nonzero()[:, 1].view(len(x), k)


def knn_predictions(
    train: FeatureSet,
    val: FeatureSet,
    ks: Sequence[int],
    classes: int,
    device: torch.device = CPU,
    shared: bool = False,
) -> dict[int, Tensor]:
    """Predict the class of each row of `val`, for each k: {k: (N,)}.

    The k nearest training images vote with weight exp(cosine / 0.07). Training rows without a label take no part, and
    k is at most the number of the others. shared: every rank calls with the same features and does its share.
    """
    train = train.labelled()
    if max(ks) > len(train.x):
        raise UserError(f"k={max(ks)} exceeds the {len(train.x)} labelled training images; lower k")
    cosine, rows = neighbours(train.x, val.x, max(ks), device, shared=shared)
    weight, label = (cosine / TEMPERATURE).exp(), train.y[rows]
    empty = torch.zeros(len(val.x), classes, dtype=weight.dtype)
    return {k: empty.scatter_add(1, label[:, :k], weight[:, :k]).argmax(dim=1) for k in ks}


def knn_accuracy(
    train: FeatureSet,
    val: FeatureSet,
    ks: Sequence[int],
    classes: int,
    device: torch.device = CPU,
    shared: bool = False,
) -> dict[int, float]:
    """Top-1 accuracy in per cent for each k, on the rows of `val` whose label is known; `shared` as in predictions."""
    val = val.labelled()
    predictions = knn_predictions(train, val, ks, classes, device, shared)
    return {k: 100 * (predicted == val.y).double().mean().item() for k, predicted in predictions.items()}


def knn_map(
    train: FeatureSet, val: FeatureSet, ks: Sequence[int], device: torch.device = CPU, shared: bool = False
) -> dict[int, float]:
    """Mean average precision in per cent for each k, of images with several labels: y (N, C) bool.

    The score of a class is the share of the k nearest training images that have it, weighted with exp(cosine / 0.07).
    `shared` as in predictions.
    """
    cosine, rows = neighbours(train.x, val.x, max(ks), device, shared=shared)
    weight = (cosine.double() / TEMPERATURE).exp()
    out = {}
    for k in ks:
        own = weight[:, :k] / weight[:, :k].sum(dim=1, keepdim=True)
        scores = torch.stack([(own * has_class[rows[:, :k]]).sum(dim=1) for has_class in train.y.T], dim=1)  # (N, C)
        out[k] = mean_average_precision(scores, val.y)
    return out
