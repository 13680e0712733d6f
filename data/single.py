"""The executor for large views on CPU: one image at a time, in place, so that it stays in the processor's cache.

Equal to `data.augment`, operation for operation, but for the ends of the blur; an image is (3, H, W) in [0, 1].
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.augment import BRIGHTNESS, CONTRAST, HUE, at_once, color, shift_hue, to_gray
from data.sampler import ViewParams
from data.views import ViewSpec

BATCHED_ON_CPU = 64  # largest view that a CPU makes faster as part of a batch


def color_views(x: Tensor, params: ViewParams, spec: ViewSpec) -> Tensor:
    """(N, 3, S, S) uint8, cropped and flipped -> float32 in [0, 1] with all colours: in whichever way is fastest there.

    On CPU, small views in chunks that fit its cache, and large ones each by itself.
    """
    on_cpu = x.device.type == "cpu"
    if on_cpu and spec.size > BATCHED_ON_CPU:
        views = x.float().div_(255)
        for i, view in enumerate(views):
            color_view(view, params, i, spec)
        return views
    step = at_once(spec.size) if on_cpu else len(x)
    cuts = [slice(at, at + step) for at in range(0, len(x), step)]
    return torch.cat([color(x[cut].float().div_(255), params.rows(cut), spec.blur_taps) for cut in cuts])


def crop_view(image: Tensor, params: ViewParams, i: int, size: int) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size) uint8: row i's box, resized as torchvision's resized_crop does, and its flip.

    Channels last, the layout in which images leave the decoders and in which torch resizes fastest.
    """
    top, left, height, width = params.box[i].tolist()
    box = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    x = box if (height, width) == (size, size) else F.interpolate(box, (size, size), mode="bilinear", antialias=True)
    return x[0].flip(2) if params.flip[i] else x[0]


def color_view(x: Tensor, params: ViewParams, i: int, spec: ViewSpec) -> None:
    """`data.augment.color` with row i of the parameters, in place."""
    if params.jitter[i]:
        for op in params.order[i].tolist():
            _change(x, op, float(params.factors[i, op]))
    if params.gray[i]:
        x.copy_(to_gray(x[None])[0].expand(3, -1, -1))
    if params.sigma[i] > 0:
        _blur(x, float(params.sigma[i]), spec.blur_taps)
    if params.solarize[i]:
        x.copy_(torch.where(x >= 128 / 255, 1 - x, x))


def _change(x: Tensor, op: int, factor: float) -> None:
    """One of the four colour properties."""
    if op == HUE:
        if factor:
            x.copy_(shift_hue(x[None], torch.tensor([factor]))[0])
        return
    if op == BRIGHTNESS:
        x.mul_(factor)
    else:
        base = to_gray(x[None])[0]
        x.mul_(factor).add_(base.mean() if op == CONTRAST else base, alpha=1 - factor)
    x.clamp_(0, 1)


def _blur(x: Tensor, sigma: float, taps: int) -> None:
    """Both axes as sums of shifted copies, which in memory are shifts of one long row; the ends fall on the border.

    Deviation: what lies beyond 4 sigma is left out, 6e-5 of the weight; it moves a pixel by less than 0.02 of 255.
    """
    r = min(taps // 2, math.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).tolist()
    channels, h, w = x.shape
    row = w + 2 * r
    y = F.pad(x, [r] * 4, mode="reflect").view(-1)
    for step in (1, row):
        n = len(y) - 2 * r * step
        total = y[r * step :][:n] * weights[r]
        for k in (k for k in range(2 * r + 1) if k != r):
            total.add_(y[k * step :][:n], alpha=weights[k])
        y = total
    x.copy_(y.as_strided((channels, h, w), ((h + 2 * r) * row, row, 1)))
