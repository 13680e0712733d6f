"""Small networks and the views that they are fed with."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.augment_torch import apply_color_augmentations, crop_axes, resample
from utils.batch import Batch


def batched(images, params, spec, ratio=None):
    """(N, 3, H, W) uint8 -> one view of each by the batched executor, in [0, 1]."""
    y, x = crop_axes(params.box, spec.size)
    if ratio is not None:
        y, x = y.stretched(ratio[:, 0]), x.stretched(ratio[:, 1])
    return apply_color_augmentations(resample(images, y, x, spec.size, params.flip), params, spec.blur_taps)


class Flat(nn.Module):
    """A backbone of two layers on flattened images."""

    def __init__(self, pixels: int, dim: int = 6):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, dim), nn.BatchNorm1d(dim), nn.Tanh())

    def forward(self, x):
        return self.layers(x)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.size = max(self.size, out.numel() if isinstance(out, torch.Tensor) else 0)
        return out


def random_views(views, n, d, seed=0):
    """`views` float64 tensors (n, d) of standard normal numbers: embeddings or predictions of n images."""
    return list(torch.randn(views, n, d, dtype=torch.double, generator=torch.Generator().manual_seed(seed)))


def random_batch(n, views, seed=0, dtype=torch.float32):
    """A batch of n images of 2 x 2 pixels with labels 0 to 9 in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(n, 3, 2, 2, dtype=dtype, generator=generator) for _ in range(views)]
    return Batch(torch.arange(n), images, torch.arange(n) % 10)
