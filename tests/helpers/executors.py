"""Images, parameters and torchvision's operations to compare the executors with."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF

from data.sampler import sample

N = 24
OFF = {"jitter": False, "gray": False, "sigma": 0.0, "solarize": False}
COLOR = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]


def images(n=N, h=37, w=52, seed=0):
    """Noise, flat patches, extremes: the pixels on which colour formulas differ."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, h, w), generator=g, dtype=torch.uint8)
    x[:, :, : h // 4] = torch.randint(0, 256, (n, 3, 1, 1), generator=g, dtype=torch.uint8)
    x[:, :, -3:] = x[:, :1, -3:]  # gray
    x[:, :, 0, :4] = torch.tensor([0, 255, 127, 128], dtype=torch.uint8)
    return x


def params(spec, n=N, sizes=(37, 52), seed=1, **fixed):
    """Drawn parameters of n images, some of them fixed."""
    p = sample(spec, seed, 2, np.arange(n), 0, np.tile(sizes, (n, 1)))
    for name, value in fixed.items():
        setattr(p, name, np.broadcast_to(value, getattr(p, name).shape).copy())
    return p
