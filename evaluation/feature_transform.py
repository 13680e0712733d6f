"""Features scaled to unit length and reduced to principal components, in parts that fit in memory."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from utils.errors import UserError

ROWS_PER_PART = 2**14


def parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows in consecutive parts, of which one at a time is in memory in two forms."""
    return np.array_split(rows, math.ceil(len(rows) / ROWS_PER_PART))


class FeatureTransform:
    """A map of features (N, F): each row to unit length; with components, less the mean, times the axes (N, D).

    mean: (F,), axes: (F, D) float32; empty where there are no components.
    """

    def __init__(self, mean: NDArray[np.float32], axes: NDArray[np.float32]):
        self.mean, self.axes = mean, axes

    @classmethod
    def fit(cls, features: NDArray[np.float32], rows: NDArray[np.int64], components: int | None) -> "FeatureTransform":
        """Fit the components, if any are asked for, by PCA of some rows in float64."""
        unit_length = cls(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
        if not components:
            return unit_length
        width = features.shape[1]
        most = min(width, len(rows))
        if components > most:
            raise UserError(
                f"--pca {components} of features with {width} coordinates and {len(rows)} rows; at most {most}"
            )
        unit = TransformedFeatures(features, unit_length)
        total, gram = np.zeros(width), np.zeros((width, width))
        for part in parts(rows):
            x = unit[part].astype(np.float64)
            total += x.sum(axis=0)
            gram += x.T @ x
        mean = total / len(rows)
        _, vectors = np.linalg.eigh(gram / len(rows) - np.outer(mean, mean))
        return cls(mean.astype(np.float32), vectors[:, ::-1][:, :components].astype(np.float32).copy())

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        unit = F.normalize(torch.from_numpy(x), dim=1)
        out: NDArray[np.float32] = (
            (unit - torch.from_numpy(self.mean)) @ torch.from_numpy(self.axes) if self.axes.size else unit
        ).numpy()
        return out


class TransformedFeatures:
    """Rows of features, which may lie on disk, transformed when they are indexed."""

    ndim = 2

    def __init__(self, features: NDArray[np.float32], transform: FeatureTransform):
        self.features, self.transform = features, transform
        self.shape = (len(features), transform.axes.shape[1] if transform.axes.size else features.shape[1])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return self.transform(np.array(self.features[rows], dtype=np.float32))
