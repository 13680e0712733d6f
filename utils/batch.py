"""The batch that data pipelines hand to methods and evaluations, and the side below which views are small."""

from typing import NamedTuple

from torch import Tensor

LOW_RES = 64  # pixels: larger views are made of photographs, views up to this side of small images such as CIFAR


class Batch(NamedTuple):
    """One rank's share of a step.

    index: (N,) int64, true positions in the data set.
    views: list of (N, 3, H, W) float tensors on the training device, normalized, large views first.
    labels: (N,) int64, -1 where unknown.
    """

    index: Tensor  # type: ignore[assignment]  # the name hides tuple.index, which nobody calls on a batch
    views: list[Tensor]
    labels: Tensor
