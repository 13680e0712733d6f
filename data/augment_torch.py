"""The batched tensor executor: a whole batch of views at once on a GPU, equal to torchvision op for op.

Images are (N, 3, H, W) in [0, 1]; every sample has its own parameters (`data.sampler.ViewParams`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.pixel_operations import (
    AFTER_BLUR,
    BEFORE_BLUR,
    CONTRAST,
    HUE,
    SATURATION,
    SIX,
    parameter_rows,
    specialize,
)
from data.sampler import ViewParams

Statistic = tuple[float, ...]  # one number per channel
# Pixels: a narrower part of an image may lie between the middles of two. Without rounding to float32 it would be 1.
NARROW = 1.001


def _minimum(a: Tensor, b: Tensor | float) -> Tensor:
    return a.clamp(max=b) if isinstance(b, float) else torch.minimum(a, b)


def _maximum(a: Tensor, b: Tensor | float) -> Tensor:
    return a.clamp(min=b) if isinstance(b, float) else torch.maximum(a, b)


def _parameter(rows: Tensor, column: int) -> Tensor:
    """(N, 1, 1): one parameter of each view, to go with a channel (N, H, W)."""
    return rows[:, column, None, None]


operations = specialize(
    {"minimum": _minimum, "maximum": _maximum, "absolute": torch.abs, "floor": torch.floor, "select": torch.where,
     "parameter": _parameter},
    number=lambda x: x,
    compiled=lambda function: function,
)  # fmt: skip


def upload(array: NDArray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The array on the device; the host does not wait for a GPU to have it."""
    host = torch.as_tensor(array, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


@dataclass
class Axis:
    """Positions of the pixels of a view along one axis of each image, in pixels of the image; arrays of N rows.

    Pixel i of the view is centred at start + (i + 0.5) * scale and sees only pixels within [low, high).
    """

    start: NDArray
    scale: NDArray
    low: NDArray
    high: NDArray

    def stretched(self, ratio: NDArray) -> "Axis":
        """These places in images that were resized by `ratio` (N,) along this axis.

        A part that may hold the middle of no resized pixel gets the pixel in which its own middle lies.
        """
        low, high = self.low * ratio, self.high * ratio
        narrow, pixel = high - low < NARROW, np.floor((low + high) / 2)
        low, high = np.where(narrow, np.minimum(low, pixel), low), np.where(narrow, np.maximum(high, pixel + 1), high)
        return Axis(self.start * ratio, self.scale * ratio, low, high)


def crop_axes(box: NDArray, size: int) -> tuple[Axis, Axis]:
    """Vertical and horizontal axis of views of `size` pixels resized from the boxes (N, 4)."""
    top, left, height, width = box.astype(np.float64).T
    return (
        Axis(top, height / size, top, top + height),
        Axis(left, width / size, left, left + width),
    )


class Views(NamedTuple):
    """One view of each of N images that are still to be made of `pixels` (M, 3, H, W) uint8, which are contiguous.

    image: (N,) rows of `pixels`. y, x: where the pixels of the views lie in the images; None: `pixels` are cropped and
    flipped views. size: side of the views. taps: of the blur.
    """

    pixels: Tensor
    image: NDArray
    params: ViewParams
    y: Axis | None
    x: Axis | None
    size: int
    taps: int


def augment_views(views: Sequence[Views], mean: Statistic, std: Statistic, dtype: torch.dtype) -> list[Tensor]:
    """(N, 3, S, S) for each of `views`, on the device of their pixels, normalized, of type `dtype`, channels last."""
    made = []
    for pixels, image, params, y, x, size, taps in views:
        images = pixels.index_select(0, upload(image, pixels.device))
        view = images.float().div_(255) if y is None or x is None else resample(images, y, x, size, params.flip)
        view = standardize_images(apply_color_augmentations(view, params, taps), mean, std)
        made.append(view.to(dtype, memory_format=torch.channels_last))
    return made


def weights(axis: Axis, pixels: int, size: int, flip: NDArray | None, device: torch.device) -> Tensor:
    """(N, size, pixels) float32: how much each pixel of the image counts for each pixel of the view.

    The triangle filter of antialiased bilinear resizing: its half-width is `scale` when shrinking and 1 otherwise.
    """
    ends = np.stack([axis.start, axis.scale, axis.low, axis.high, np.zeros(len(axis.low)) if flip is None else flip])
    start, scale, low, high, mirrored = upload(ends, device, torch.float32)[:, :, None, None]
    i = torch.arange(size, device=device, dtype=torch.float32)[:, None] + 0.5
    i = torch.where(mirrored > 0, size - i, i)
    j = torch.arange(pixels, device=device, dtype=torch.float32) + 0.5
    w = operations.triangle(j - start - i * scale, scale.clamp(min=1))
    w = w * ((j > low) & (j < high))
    weight: Tensor = w / w.sum(dim=2, keepdim=True)
    return weight


def resample(images: Tensor, y: Axis, x: Axis, size: int, flip: NDArray | None = None) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, size, size) float32 in [0, 1]: crop, antialiased resize and flip in one.

    y, x: where the pixels of the views lie in these images. Boxes in pixels of the original are `stretched` to images
    that are stored resized: a view has the proportions that its box gives it.
    """
    n, c, h, w = images.shape
    wy = weights(y, h, size, None, images.device)  # (N, S, H)
    wx = weights(x, w, size, flip, images.device)  # (N, S, W)
    rows = torch.bmm(images.reshape(n, c * h, w).float(), wx.transpose(1, 2))  # (N, 3H, S)
    wy = (wy / 255).repeat_interleave(c, dim=0)  # (3N, S, H)
    return torch.bmm(wy, rows.view(n * c, h, size)).view(n, c, size, size)


def to_gray(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W)."""
    gray: Tensor = operations.gray(*x.split(1, dim=1))
    return gray


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of images (N, 3, H, W) by shift (N,) of a full circle."""
    return torch.stack(operations.shift_hue(*x.unbind(dim=1), SIX * shift[:, None, None]), dim=1)


def jitter(x: Tensor, params: ViewParams) -> Tensor:
    """Brightness, contrast, saturation and hue of (N, 3, H, W), in each sample's own order; may change x."""
    op = np.where(params.jitter[:, None], params.order, HUE)  # (N, 4)
    f = np.take_along_axis(params.factors, op, 1)
    parts = np.stack([np.where(op == HUE, 1, f), (1 - f) * (op == CONTRAST), (1 - f) * (op == SATURATION)])
    gains, mean_parts, gray_parts = upload(parts, x.device, x.dtype).view(3, -1, 4, 1, 1, 1)
    turned = (op == HUE) & params.jitter[:, None] & (f != 0)
    for place in range(4):
        gray = to_gray(x)
        part = mean_parts[:, place] * gray.mean(dim=(2, 3), keepdim=True) + gray_parts[:, place] * gray
        x = operations.blend(x, gains[:, place], part)
        if turned[:, place].any():
            rows = np.flatnonzero(turned[:, place])
            shift, at = upload(f[rows, place], x.device, x.dtype), upload(rows, x.device)
            x.index_copy_(0, at, shift_hue(x.index_select(0, at), shift))
    return x


def blur(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Gaussian blur with one sigma per sample (N,) and mirrored borders, as two one-dimensional convolutions."""
    n, c, h, w = x.shape
    at = torch.arange(taps, dtype=x.dtype, device=x.device) - (taps - 1) / 2
    kernel = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)[:, None]  # (3N, 1, taps)
    x = F.pad(x, [taps // 2] * 4, mode="reflect").view(1, n * c, h + taps - 1, w + taps - 1)
    x = F.conv2d(x, kernel[:, :, None, :], groups=n * c)
    return F.conv2d(x, kernel[:, :, :, None], groups=n * c).view(n, c, h, w)


def apply_color_augmentations(x: Tensor, params: ViewParams, taps: int) -> Tensor:
    """Apply jitter, gray, blur and solarize to views (N, 3, S, S) in [0, 1]; may change x, and returns the result."""
    rows = parameter_rows(params)
    on_device = upload(rows, x.device, x.dtype)
    if params.jitter.any():
        x = jitter(x, params)
    if (rows[:, BEFORE_BLUR] > 0).any():
        x = torch.stack(operations.before_blur(*x.unbind(dim=1), on_device), dim=1)
    if (params.sigma > 0).any():
        at = upload(np.flatnonzero(params.sigma > 0), x.device)
        sigma = upload(params.sigma[params.sigma > 0], x.device, x.dtype)
        x.index_copy_(0, at, blur(x.index_select(0, at), sigma, taps))  # many times faster than x[at] on CPU
    if (rows[:, AFTER_BLUR] > 0).any():
        x = torch.stack(operations.after_blur(*x.unbind(dim=1), on_device), dim=1)
    return x


def standardize_images(x: Tensor, mean: Statistic, std: Statistic) -> Tensor:
    """(N, 3, H, W) uint8, or float in [0, 1], -> float32 standardized with the data set's mean and deviation."""
    x = x.float().div_(255) if x.dtype == torch.uint8 else x
    m, s = upload(np.array([mean, std]), x.device, x.dtype).view(2, 1, 3, 1, 1)
    return x.sub_(m).div_(s)
