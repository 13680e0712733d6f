"""The executor on CPU: loops compiled by numba, one view at a time, so that the view stays in the processor's cache.

Equal to `data.augment_torch`, operation for operation, but for the ends of the blur. Views are (3, S, S) float32 in
[0, 1] until they are written, normalized. The loops are written so that the innermost runs over neighbours in memory.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data import pixel_operations
from data.augment_torch import Axis
from data.pixel_operations import (
    AFTER_BLUR,
    BEFORE_BLUR,
    CONTRAST,
    FACTORS,
    FLIP,
    HUE,
    JITTER,
    ORDER,
    SATURATION,
    SIGMA,
    parameter_rows,
    specialize,
)
from data.sampler import ViewParams

F = TypeVar("F", bound=Callable[..., Any])
Statistic = tuple[float, ...]  # one number per channel

# Sums may be reordered and products fused, as in torch's own kernels; not-a-number and infinity stay what they are.
NUMBA_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
}
BLOCK = 16  # columns that are transposed together: a cache line of float32
ZERO, ONE, SIX = (np.float32(n) for n in (0, 1, 6))
SHARED = hashlib.sha256(Path(pixel_operations.__file__).read_bytes()).hexdigest()[:12]


def compiled(function: F) -> F:
    """The function compiled to machine code, which is kept beside this file, or in the user's cache, for later runs.

    numba compiles a function anew when its own file has changed; SHARED in the name does it for the shared operations.
    """
    function.__qualname__ = f"{function.__qualname__}_{SHARED}"
    try:
        fast: F = njit(cache=True, **NUMBA_OPTIONS)(function)
    except RuntimeError:  # neither folder can be written to: every run compiles anew
        fast = njit(**NUMBA_OPTIONS)(function)
    return fast


@compiled
def _select(condition: bool, a: np.float32, b: np.float32) -> np.float32:
    return a if condition else b


@compiled
def _parameter(row: NDArray, column: int) -> float:
    value: float = row[column]
    return value


_operations = specialize(
    {"minimum": min, "maximum": max, "absolute": abs, "floor": np.floor, "select": _select, "parameter": _parameter},
    number=lambda x: np.float32(x) if isinstance(x, float) else x,
    compiled=compiled,
)
blend, gray, shift_hue, triangle = _operations.blend, _operations.gray, _operations.shift_hue, _operations.triangle
before_blur, after_blur = _operations.before_blur, _operations.after_blur


def augment_images(
    pixels: NDArray, index: NDArray, y: Axis, x: Axis, params: ViewParams, taps: int,
    mean: Statistic, std: Statistic, out: NDArray,
) -> None:  # fmt: skip
    """Write views of the images `index` (N,) of pixels (M, 3, H, W) uint8 into out (N, 3, S, S) float32, normalized.

    y, x: where the pixels of the views lie in the images. params: of the flip and the colours. taps: of the blur.
    """
    axes = np.stack([y.start, y.scale, y.low, y.high, x.start, x.scale, x.low, x.high], axis=1)
    _augment_images(pixels, index, axes, parameter_rows(params), taps, *_gain_and_shift(mean, std), out)


def augment_crops(
    views: list[NDArray], params: ViewParams, taps: int, mean: Statistic, std: Statistic, out: NDArray
) -> None:
    """Write cropped views (S, S, 3) uint8 into out (N, 3, S, S) float32: flip, colours, blur, normalization."""
    rows, (gain, shift) = parameter_rows(params), _gain_and_shift(mean, std)
    for i, view in enumerate(views):
        _augment_crop(view, rows[i], taps, gain, shift, out[i])


def to_chw(views: list[NDArray], flip: NDArray, out: NDArray) -> None:
    """Write cropped views (S, S, 3) uint8 into out (N, 3, S, S) uint8; views where `flip` (N,) is set are mirrored."""
    for i, view in enumerate(views):
        _to_chw(view, flip[i], np.uint8(1), out[i])


def _gain_and_shift(mean: Statistic, std: Statistic) -> tuple[NDArray, NDArray]:
    """Normalization as x * gain + shift, per channel."""
    deviation = np.array(std, np.float32)
    return ONE / deviation, -np.array(mean, np.float32) / deviation


@compiled
def _augment_images(
    pixels: NDArray, index: NDArray, axes: NDArray, params: NDArray, taps: int, gain: NDArray, shift: NDArray,
    out: NDArray,
) -> None:  # fmt: skip
    size, height, width = out.shape[2], pixels.shape[2], pixels.shape[3]
    t = np.empty((3, size, size), np.float32)
    scratch = np.empty((2, max(size, width), max(size, width)), np.float32)
    widest = 2 + 2 * int(max(axes[:, 1].max(), axes[:, 5].max(), 1.0) + 1)
    rows, columns = np.empty((size, widest), np.float32), np.empty((size, widest), np.float32)
    first, count = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    for i in range(len(index)):
        _filter_weights(axes[i, :4], height, 1 / 255, first[0], count[0], rows)
        _filter_weights(axes[i, 4:], width, 1.0, first[1], count[1], columns)
        _resample(pixels[index[i]], first, count, rows, columns, params[i, FLIP] > 0, scratch, t)
        _augment_inplace(t, params[i], taps, scratch)
        for c in range(3):
            _transpose_scale(t[c], size, size, gain[c], shift[c], out[i, c])


@compiled
def _augment_crop(view: NDArray, params: NDArray, taps: int, gain: NDArray, shift: NDArray, out: NDArray) -> None:
    size = len(view)
    t = np.empty((3, size, size), np.float32)
    _to_chw(view, params[FLIP] > 0, np.float32(1 / 255), t)
    _augment_inplace(t, params, taps, np.empty((2, size, size), np.float32))
    _normalize_into(t, gain, shift, out)


@compiled
def _to_chw(view: NDArray, flip: bool, gain: np.generic, out: NDArray) -> None:
    """out (3, S, S) = gain * view (S, S, 3), mirrored with `flip`."""
    size = len(view)
    for y in range(size):
        for x in range(size):
            to = size - 1 - x if flip else x
            for c in range(3):
                out[c, y, to] = view[y, x, c] * gain


@compiled
def _filter_weights(axis: NDArray, pixels: int, unit: float, first: NDArray, count: NDArray, weight: NDArray) -> None:
    """`data.augment_torch.weights` of one image along one axis, without zeros: count[i] weights from pixel first[i].

    The weights of a pixel of the view sum to `unit`.
    """
    start, scale, low, high = axis
    half = max(scale, 1.0)
    for i in range(len(first)):
        centre = start + (i + 0.5) * scale
        at, until = max(int(math.floor(centre - half)), 0), min(int(math.ceil(centre + half)), pixels)
        n, total = 0, 0.0
        for j in range(at, until):
            w = triangle(j + 0.5 - centre, half)
            if w > 0 and low < j + 0.5 < high:
                if n == 0:
                    first[i] = j
                weight[i, n] = w
                total += w
                n += 1
        count[i] = n
        for k in range(n):
            weight[i, k] *= unit / total


@compiled
def _resample(
    image: NDArray, first: NDArray, count: NDArray, rows: NDArray, columns: NDArray, flip: bool, scratch: NDArray,
    t: NDArray,
) -> None:  # fmt: skip
    """(3, H, W) uint8 -> t (3, S, S), transposed: a row of t for each column of the view. Rows are filtered first."""
    size = t.shape[1]
    left, right = first[1].min(), (first[1] + count[1]).max()
    mid, transposed = scratch
    for c in range(3):
        for y in range(size):
            for k in range(count[0, y]):
                w, line = rows[y, k], image[c, first[0, y] + k]
                for x in range(right - left):
                    mid[y, x] = w * np.float32(line[left + x]) + (mid[y, x] if k else ZERO)
        _transpose_scale(mid, size, right - left, ONE, ZERO, transposed)
        for x in range(size):
            to = t[c, size - 1 - x if flip else x]
            for k in range(count[1, x]):
                w, line = columns[x, k], transposed[first[1, x] - left + k]
                for y in range(size):
                    to[y] = w * line[y] + (to[y] if k else ZERO)


@compiled
def _transpose_scale(
    a: NDArray, height: int, width: int, gain: np.float32, shift: np.float32, out: NDArray
) -> None:  # fmt: skip
    """out[x, y] = gain * a[y, x] + shift, in blocks."""
    for at in range(0, height, BLOCK):
        for x in range(width):
            for y in range(at, min(at + BLOCK, height)):
                out[x, y] = gain * a[y, x] + shift


@compiled
def _normalize_into(t: NDArray, gain: NDArray, shift: NDArray, out: NDArray) -> None:
    for c in range(3):
        for y in range(t.shape[1]):
            for x in range(t.shape[2]):
                out[c, y, x] = t[c, y, x] * gain[c] + shift[c]


@compiled
def _augment_inplace(t: NDArray, params: NDArray, taps: int, scratch: NDArray) -> None:
    """Apply every operation after the crop and the flip to t (3, S, S)."""
    if params[JITTER] > 0:
        for k in range(4):
            op = int(params[ORDER + k])
            _jitter(t, op, np.float32(params[FACTORS + op]))
    r, g, b = t[0].ravel(), t[1].ravel(), t[2].ravel()
    if _any_on(params, BEFORE_BLUR):
        for i in range(len(r)):
            r[i], g[i], b[i] = before_blur(r[i], g[i], b[i], params)
    if params[SIGMA] > 0:
        _blur(t, params[SIGMA], taps, scratch)
    if _any_on(params, AFTER_BLUR):
        for i in range(len(r)):
            r[i], g[i], b[i] = after_blur(r[i], g[i], b[i], params)


@compiled
def _any_on(params: NDArray, columns: tuple[int, ...]) -> bool:
    for column in columns:  # noqa: SIM110  # numba knows no generators
        if params[column] > 0:
            return True
    return False


@compiled
def _jitter(t: NDArray, op: int, f: np.float32) -> None:
    """Change one colour property: hue, or f * x + (1 - f) * base with the base of the other three."""
    r, g, b = t[0].ravel(), t[1].ravel(), t[2].ravel()
    if op == HUE:
        if f != 0:
            for i in range(len(r)):
                r[i], g[i], b[i] = shift_hue(r[i], g[i], b[i], SIX * f)
    elif op == SATURATION:
        for i in range(len(r)):
            part = (ONE - f) * gray(r[i], g[i], b[i])
            r[i], g[i], b[i] = blend(r[i], f, part), blend(g[i], f, part), blend(b[i], f, part)
    else:
        part = ZERO
        if op == CONTRAST:
            total = ZERO
            for i in range(len(r)):
                total += gray(r[i], g[i], b[i])
            part = (ONE - f) * total / np.float32(len(r))
        for i in range(len(r)):
            r[i], g[i], b[i] = blend(r[i], f, part), blend(g[i], f, part), blend(b[i], f, part)


@compiled
def _blur(t: NDArray, sigma: float, taps: int, scratch: NDArray) -> None:
    """Gaussian blur along both axes, one after the other, with mirrored borders.

    Deviation: the kernel ends at 4 sigma, which leaves out 6e-5 of its weight and moves a pixel by less than 0.02 of
    255.
    """
    size = t.shape[1]
    r = min(taps // 2, int(math.ceil(4 * sigma)))
    w, total = np.empty(r + 1, np.float32), 1.0
    for k in range(1, r + 1):
        total += 2 * math.exp(-0.5 * (k / sigma) ** 2)
    for k in range(r + 1):
        w[k] = math.exp(-0.5 * (k / sigma) ** 2) / total
    line = np.empty(size + 2 * r, np.float32)
    for c in range(3):
        for y in range(size):
            _blur_down(t[c], y, w, scratch[0, y, :size])
        for y in range(size):
            _blur_across(scratch[0, y], w, line, t[c, y])


@compiled
def _blur_down(a: NDArray, y: int, w: NDArray, to: NDArray) -> None:
    """Write row y of a, blurred with the rows above and below it."""
    last = len(to) - 1
    for x in range(len(to)):
        to[x] = w[0] * a[y, x]
    for k in range(1, len(w)):
        above, below = a[abs(y - k)], a[last - abs(last - y - k)]
        for x in range(len(to)):
            to[x] += w[k] * (above[x] + below[x])


@compiled
def _blur_across(row: NDArray, w: NDArray, line: NDArray, to: NDArray) -> None:
    """Write a row, blurred along itself; `line` has room for the row and its mirrored ends."""
    size, r = len(to), len(w) - 1
    for x in range(size):
        line[r + x] = row[x]
    for k in range(1, r + 1):
        line[r - k], line[r + size - 1 + k] = line[r + k], line[r + size - 1 - k]
    for x in range(size):
        to[x] = w[0] * line[r + x]
    for k in range(1, r + 1):
        before, after = line[r - k : r - k + size], line[r + k : r + k + size]
        for x in range(size):
            to[x] += w[k] * (before[x] + after[x])
