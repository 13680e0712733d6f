"""Features of the views of a batch, and how methods pair the views of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from utils.precision import l2_normalize


@dataclass(frozen=True)
class ViewFeatures:
    """Backbone features (N, D), one tensor per view; `all` is `large` followed by `small`.

    evaluated: features of the large views by the network that is evaluated, where that is not the one that learns from
    the loss (the teacher of DINO); the online probe trains on them. Methods that need more of the backbone than pooled
    features, as its tokens, derive from this class.
    """

    large: list[Tensor]
    small: list[Tensor]
    evaluated: list[Tensor] | None = None

    @property
    def all(self) -> list[Tensor]:
        return self.large + self.small


T = TypeVar("T")


def view_pairs(views: Sequence[T], large: Sequence[T]) -> list[tuple[T, T]]:
    """Pairs (views[v], large[l]) of a view and another, large one (l != v); `views` begins with the large views."""
    return [(a, b) for j, b in enumerate(large) for i, a in enumerate(views) if i != j]


def mean_cosine(predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean cosine of predictions and targets over images and over all pairs of a view and another, large one.

    predictions: (n, D) of all views, large ones first. targets: (n, D) of the large views.
    """
    pairs = view_pairs([l2_normalize(p) for p in predictions], [l2_normalize(t) for t in targets])
    return torch.stack([(p * t).sum(dim=1).mean() for p, t in pairs]).mean()


def coordinate_std(z: Tensor) -> Tensor:
    """Standard deviation over the batch of the coordinates of z / |z|, averaged over coordinates; z: (n, D)."""
    return l2_normalize(z).std(dim=0).mean()
