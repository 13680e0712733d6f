"""The batched tensor executor: a whole batch of views at once on a GPU, equal to torchvision op for op.

Images are (N, 3, H, W) in [0, 1]; every sample has its own parameters (`data.sampler.ViewParams`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.sampler import ViewParams

GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


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
        """These places in images that were resized by `ratio` (N,) along this axis."""
        return Axis(self.start * ratio, self.scale * ratio, self.low * ratio, self.high * ratio)


def crop_axes(box: NDArray, size: int) -> tuple[Axis, Axis]:
    """Vertical and horizontal axis of views of `size` pixels resized from the boxes (N, 4)."""
    top, left, height, width = box.astype(np.float64).T
    return (
        Axis(top, height / size, top, top + height),
        Axis(left, width / size, left, left + width),
    )


def weights(axis: Axis, pixels: int, size: int, flip: NDArray | None, device: torch.device) -> Tensor:
    """(N, size, pixels) float32: how much each pixel of the image counts for each pixel of the view.

    The triangle filter of antialiased bilinear resizing: its half-width is `scale` when shrinking and 1 otherwise.
    """
    start, scale, low, high = (
        torch.as_tensor(a, dtype=torch.float32, device=device)[:, None, None]
        for a in (axis.start, axis.scale, axis.low, axis.high)
    )
    i = torch.arange(size, device=device, dtype=torch.float32)[:, None] + 0.5
    if flip is not None:
        mirrored = torch.as_tensor(flip, device=device)[:, None, None]
        i = torch.where(mirrored, size - i, i)
    j = torch.arange(pixels, device=device, dtype=torch.float32) + 0.5
    w = (1 - (j - start - i * scale).abs() / scale.clamp(min=1)).clamp(min=0)
    w = w * ((j > low) & (j < high))
    return w / w.sum(dim=2, keepdim=True)


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
    return (x[:, :1] * GRAY[0]).add_(x[:, 1:2], alpha=GRAY[1]).add_(x[:, 2:], alpha=GRAY[2])


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue by shift (N,) of a full circle, exactly through HSV, without its branches.

    With v, m the largest and smallest channel of a pixel and c = v - m, the hue in sixths is, up to full circles,
    1 + (g + b - r - m) / c where g >= b and minus that where not: the usual three cases in one. Back from a hue h in
    [0, 6), red is m + c * clip(|h - 3| - 1, 0, 1), green and blue m + c * clip(2 - |h - o|, 0, 1), o = 2 and 4.
    """
    r, g, b = x.unbind(dim=1)
    m = torch.minimum(torch.minimum(r, g), b)
    c = torch.maximum(torch.maximum(r, g), b).sub_(m)
    h = (g + b).sub_(r).sub_(m).div_(c.clamp(min=1e-9)).add_(1)  # where c is 0, so is what it divides
    h = torch.copysign(h, g - b).add_(6 * shift.view(-1, 1, 1))
    h.sub_(torch.div(h, 6).floor_(), alpha=6)
    near = h[:, None] - torch.tensor([3.0, 2.0, 4.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    near = near.abs_().neg_().add_(2)
    near[:, 0].neg_().add_(1)
    return near.clamp_(0, 1).mul_(c[:, None]).add_(m[:, None])


def jitter(x: Tensor, params: ViewParams) -> Tensor:
    """Brightness, contrast, saturation and hue, in each sample's own order, clamped after each; changes x.

    The first three are one formula, f * x + (1 - f) * base, with base 0, the mean gray, and the gray of the pixel.
    """
    op = np.where(params.jitter[:, None], params.order, HUE)  # (N, 4)
    f = np.take_along_axis(params.factors, op, 1)
    parts = np.stack([np.where(op == HUE, 1, f), (1 - f) * (op == CONTRAST), (1 - f) * (op == SATURATION)])
    gains, mean_parts, gray_parts = torch.as_tensor(parts, dtype=x.dtype, device=x.device).view(3, -1, 4, 1, 1, 1)
    turned = (op == HUE) & params.jitter[:, None] & (f != 0)
    for place in range(4):
        gray = to_gray(x)
        base = mean_parts[:, place] * gray.mean(dim=(2, 3), keepdim=True)
        base = gray.mul_(gray_parts[:, place]).add_(base)
        x = x.mul_(gains[:, place]).add_(base).clamp_(0, 1)
        if turned[:, place].any():
            rows = np.flatnonzero(turned[:, place])
            shift = torch.as_tensor(f[rows, place], dtype=x.dtype, device=x.device)
            at = torch.as_tensor(rows, device=x.device)
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
    """Apply jitter, gray, blur and solarize to views (N, 3, S, S) in [0, 1]; changes x and returns the result."""

    def change(mask: NDArray, operation: Callable[[Tensor], Tensor]) -> None:
        if mask.any():
            rows = torch.as_tensor(np.flatnonzero(mask), device=x.device)
            x.index_copy_(0, rows, operation(x.index_select(0, rows)))  # many times faster than x[rows] on CPU

    if params.jitter.any():
        x = jitter(x, params)
    sigma = torch.as_tensor(params.sigma[params.sigma > 0], dtype=x.dtype, device=x.device)
    change(params.gray, lambda views: to_gray(views).expand(-1, 3, -1, -1))
    change(params.sigma > 0, lambda views: blur(views, sigma, taps))
    change(params.solarize, lambda views: torch.where(views >= 128 / 255, 1 - views, views))
    return x


def standardize_images(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(N, 3, H, W) uint8, or float in [0, 1], -> float32 standardized with the data set's mean and deviation."""
    x = x.float().div_(255) if x.dtype == torch.uint8 else x
    m, s = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for v in (mean, std))
    return x.sub_(m).div_(s)
