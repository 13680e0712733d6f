"""Weighted nearest neighbours (Wu et al., 2018, arXiv:1805.01978, sec. 3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.features import FeatureSet

TEMPERATURE = 0.07


CPU = torch.device("cpu")


def neighbours(
    bank: Tensor, queries: Tensor, k: int, device: torch.device = CPU, at_once: int = 2**26
) -> tuple[Tensor, Tensor]:
    """(M, D) bank, (N, D) queries -> cosines (N, k) and rows of the bank (N, k), nearest first, on CPU.

    `at_once` bounds the similarities in memory: the whole N x M matrix is never made.
    """
    bank = F.normalize(bank.to(device), dim=1)
    values, rows = [], []
    for q in queries.split(max(1, at_once // len(bank))):
        best = (F.normalize(q.to(device), dim=1) @ bank.T).topk(k, dim=1)
        values.append(best.values.cpu())
        rows.append(best.indices.cpu())
    return torch.cat(values), torch.cat(rows)


def knn_guess(
    train: FeatureSet, val: FeatureSet, ks: Sequence[int], classes: int, device: torch.device = CPU
) -> dict[int, Tensor]:
    """k -> (N,) the class that the k nearest training images vote for, each weighted exp(cosine / 0.07).

    Training rows without a label take no part. k is at most the number of labelled training images.
    """
    train = train.labelled()
    if max(ks) > len(train.x):
        raise ValueError(f"k = {max(ks)} neighbours of {len(train.x)} labelled training images")
    cosine, rows = neighbours(train.x, val.x, max(ks), device)
    weight, label = (cosine / TEMPERATURE).exp(), train.y[rows]
    empty = torch.zeros(len(val.x), classes, dtype=weight.dtype)
    return {k: empty.scatter_add(1, label[:, :k], weight[:, :k]).argmax(dim=1) for k in ks}


def knn_accuracy(
    train: FeatureSet, val: FeatureSet, ks: Sequence[int], classes: int, device: torch.device = CPU
) -> dict[int, float]:
    """k -> top-1 accuracy in per cent on the rows of `val` whose label is known."""
    val = val.labelled()
    guessed = knn_guess(train, val, ks, classes, device)
    return {k: 100 * (guess == val.y).double().mean().item() for k, guess in guessed.items()}
