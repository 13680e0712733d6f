"""kNN: weighted nearest neighbours of features (Wu et al., 2018, arXiv:1805.01978, sec. 3.4)."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.features import FeatureSet
from evaluation.settings import Note, TrainingLabels, feasible_values
from evaluation.target import EvaluationTarget
from utils.arg_types import positive_int
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.scores import Score

TEMPERATURE = 0.07  # of the weights
DEFAULT_K = (20, 200)
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
    """Top-1 accuracy of weighted nearest neighbours, for each k."""
    if not settings.k:
        return []
    accuracies = knn_accuracy(target.train, target.labelled_val, settings.k, target.classes, target.device)
    return [Score(f"knn_{k}", accuracy) for k, accuracy in accuracies.items()]


def neighbours(
    bank: Tensor, queries: Tensor, k: int, device: torch.device = CPU, at_once: int = 2**26
) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows: (M, D) bank, (N, D) queries -> cosines (N, k), rows of the bank (N, k), on CPU.

    Nearest first. `at_once` bounds the similarities in memory: the whole N x M matrix is never made.
    """
    bank = F.normalize(bank.to(device), dim=1)
    values, rows = [], []
    for q in queries.split(max(1, at_once // len(bank))):
        best = (F.normalize(q.to(device), dim=1) @ bank.T).topk(k, dim=1)
        values.append(best.values.cpu())
        rows.append(best.indices.cpu())
    return torch.cat(values), torch.cat(rows)


def knn_predictions(
    train: FeatureSet, val: FeatureSet, ks: Sequence[int], classes: int, device: torch.device = CPU
) -> dict[int, Tensor]:
    """Predict the class of each row of `val`, for each k: {k: (N,)}.

    The k nearest training images vote with weight exp(cosine / 0.07). Training rows without a label take no part, and
    k is at most the number of the others.
    """
    train = train.labelled()
    if max(ks) > len(train.x):
        raise UserError(f"k={max(ks)} exceeds the {len(train.x)} labelled training images; lower k")
    cosine, rows = neighbours(train.x, val.x, max(ks), device)
    weight, label = (cosine / TEMPERATURE).exp(), train.y[rows]
    empty = torch.zeros(len(val.x), classes, dtype=weight.dtype)
    return {k: empty.scatter_add(1, label[:, :k], weight[:, :k]).argmax(dim=1) for k in ks}


def knn_accuracy(
    train: FeatureSet, val: FeatureSet, ks: Sequence[int], classes: int, device: torch.device = CPU
) -> dict[int, float]:
    """Top-1 accuracy in per cent for each k, on the rows of `val` whose label is known."""
    val = val.labelled()
    predictions = knn_predictions(train, val, ks, classes, device)
    return {k: 100 * (predicted == val.y).double().mean().item() for k, predicted in predictions.items()}
