"""The one sampler: every random choice about data is a function of its address, never of earlier choices.

The number of workers, of processes and of restarts changes nothing, and every executor sees the same parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from data.views import RATIO, SIGMA, ViewSpec
from utils.random import uniform_array

ORDER, VIEW = 0, 1  # streams
ATTEMPTS = 10  # boxes tried per crop before the fallback, as torchvision does


def epoch_order(n: int, seed: int, epoch: int) -> NDArray:
    """A permutation of n that belongs to (seed, epoch)."""
    return np.argsort(uniform_array(seed, ORDER, epoch, np.arange(n)), kind="stable")


@dataclass
class ViewParams:
    """Parameters of one view of each of N images; arrays of N rows.

    box: (N, 4) int64 top, left, height, width in pixels of the original. flip, jitter, gray, solarize: bool.
    factors: (N, 4) brightness, contrast, saturation, hue. order: (N, 4) which of them to change first, second, ...
    sigma: of the blur in pixels, 0 for none.
    """

    box: NDArray
    flip: NDArray
    jitter: NDArray
    factors: NDArray
    order: NDArray
    gray: NDArray
    sigma: NDArray
    solarize: NDArray

    @staticmethod
    def concatenate(parts: "Sequence[ViewParams]") -> "ViewParams":
        """The rows of all parts, one after the other."""
        return ViewParams(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(ViewParams)))


def sample(spec: ViewSpec, seed: int, epoch: int, index: NDArray, view: int, sizes: NDArray) -> ViewParams:
    """Parameters of view number `view` of the images `index` (N,) with heights and widths `sizes` (N, 2)."""
    u = uniform_array(seed, VIEW, epoch, view, np.asarray(index)[:, None], np.arange(2 * ATTEMPTS + 16))
    area, ratio, single, factors, order = np.split(u, np.cumsum([ATTEMPTS, ATTEMPTS, 8, 4]), axis=1)
    top, left, flip, jitter, gray, blur, sigma, solarize = single.T
    strength = np.array([spec.brightness, spec.contrast, spec.saturation])
    low, high = np.maximum(0, 1 - strength), 1 + strength
    return ViewParams(
        box=_crop(spec, area, ratio, top, left, np.asarray(sizes, dtype=np.int64)),
        flip=flip < spec.flip,
        jitter=jitter < spec.jitter,
        factors=np.concatenate([low + (high - low) * factors[:, :3], spec.hue * (2 * factors[:, 3:] - 1)], axis=1),
        order=np.argsort(order, axis=1),
        gray=gray < spec.gray,
        sigma=np.where(blur < spec.blur, SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma, 0.0),
        solarize=solarize < spec.solarize,
    )


def _crop(spec: ViewSpec, area: NDArray, ratio: NDArray, top: NDArray, left: NDArray, sizes: NDArray) -> NDArray:
    """Boxes of torchvision's RandomResizedCrop: the first of ten draws that fits, else the largest central box."""
    h, w = sizes[:, :1], sizes[:, 1:]  # (N, 1)
    area = h * w * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * area)  # (N, 10)
    ratio = np.exp(np.log(RATIO[0]) + np.log(RATIO[1] / RATIO[0]) * ratio)
    bw, bh = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (bw > 0) & (bw <= w) & (bh > 0) & (bh <= h)
    first = fits.argmax(axis=1)[:, None]
    bw, bh = np.take_along_axis(bw, first, 1), np.take_along_axis(bh, first, 1)
    none = ~fits.any(axis=1, keepdims=True)
    bw = np.where(none, np.minimum(w, np.maximum(1, np.rint(h * RATIO[1]).astype(np.int64))), bw)
    bh = np.where(none, np.minimum(h, np.maximum(1, np.rint(w / RATIO[0]).astype(np.int64))), bh)
    top = np.where(none, (h - bh) // 2, np.floor(top[:, None] * (h - bh + 1)).astype(np.int64))
    left = np.where(none, (w - bw) // 2, np.floor(left[:, None] * (w - bw + 1)).astype(np.int64))
    return np.concatenate([top, left, bh, bw], axis=1)
