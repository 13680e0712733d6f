"""The one thing that travels from data to methods."""

from typing import NamedTuple

from torch import Tensor

LOW_RES = 64  # pixels: views up to this side count as low resolution


class Batch(NamedTuple):
    """One rank's share of a step.

    index: (N,) int64, true positions in the data set.
    views: list of (N, 3, H, W) float tensors on the training device, normalized, large views first.
    labels: (N,) int64, -1 where unknown.
    """

    index: Tensor  # type: ignore[assignment]  # the name hides tuple.index, which nobody calls on a batch
    views: list[Tensor]
    labels: Tensor
