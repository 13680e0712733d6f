"""Baselines: Pillow and torchvision as their users write it: decoding, SimCLR's views, a DataLoader, a training loop.

The views: crop, flip, jitter .4 .4 .2 .1 with probability .8, gray .2, normalized, and at 224 pixels blur .5.
"""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bench.sides import Settings, Work, waiting
from bench.task import (
    BATCH,
    EPOCH,
    IN_MEMORY,
    LARGE,
    SMALL,
    WARM,
    WORKERS,
    Task,
    autocast,
    each,
    from_files,
    images_in_memory,
    jpeg_files,
    rate,
    steady,
)
from data.views import SIGMA, ViewSpec
from utils.hardware import choose_precision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HIDDEN, EMBEDDING = 2048, 128  # widths of SimCLR's projector, as in Lookalike


def by_pillow(path: str) -> np.ndarray:
    with Image.open(path, formats=["JPEG"]) as image:
        return np.array(image.convert("RGB"))


def decode(settings: Settings) -> Work:
    assert settings.photographs
    files = jpeg_files(settings.photographs)
    return Work(lambda: rate(lambda: each(files, by_pillow), settings.seconds))


def v1_view(spec: ViewSpec, blur: Callable | None = None) -> Callable[[Image.Image], Tensor]:
    compose: Callable[[Image.Image], Tensor] = T.Compose([
        T.RandomResizedCrop(spec.size, spec.scale),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        T.RandomGrayscale(0.2),
        *([T.RandomApply([blur], p=0.5)] if blur else []),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ])  # fmt: skip
    return compose


def v2_view(spec: ViewSpec) -> Callable[[Tensor], Tensor]:
    compose: Callable[[Tensor], Tensor] = v2.Compose([
        v2.RandomResizedCrop(spec.size, spec.scale, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    return compose


def one_by_one(settings: Settings, v1: bool, spec: ViewSpec = SMALL) -> Work:
    """Two views of each image in memory, from Pillow images or from uint8 tensors."""
    pixels = list(images_in_memory(spec)[: IN_MEMORY if spec == SMALL else 32])
    images: list[Any] = [T.functional.to_pil_image(x) for x in pixels] if v1 else pixels
    view: Callable = v1_view(spec, BLURS["pillow"] if spec.blur else None) if v1 else v2_view(spec)

    def batch() -> int:
        return sum(len(torch.stack([view(x) for x in images])) for _ in range(2))

    return Work(lambda: rate(batch, settings.seconds))


class Twice:
    """Two views of an image."""

    def __init__(self, view: Callable[[Image.Image], Tensor]):
        self.view = view

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self.view(image), self.view(image)


def pillow_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA)))


BLURS = {"pillow": T.Lambda(pillow_blur), "torchvision": T.GaussianBlur(LARGE.blur_taps, SIGMA)}


def loader(folder: Path, view: Callable, batch_size: int, batches: int | None = None) -> DataLoader:
    """A loader whose epoch is every image once, or `batches` batches; its workers stay between epochs."""
    images = ImageFolder(str(folder), Twice(view))
    order = RandomSampler(images, replacement=True, num_samples=batches * batch_size) if batches else None
    return DataLoader(images, batch_size, shuffle=order is None, sampler=order, drop_last=True, num_workers=WORKERS,
                      persistent_workers=True, pin_memory=torch.cuda.is_available())  # fmt: skip


def loaded(settings: Settings, blur: str) -> Work:
    assert settings.photographs
    batches = loader(settings.photographs, v1_view(LARGE, BLURS[blur]), BATCH, EPOCH)
    return Work(from_files(lambda: batches))


def nt_xent(z: Tensor, temperature: float = 0.1) -> Tensor:
    """z: (2N, D), first views, then second ones."""
    z = F.normalize(z, dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def train(settings: Settings, task: Task) -> Work:
    """SimCLR in a plain loop, in the precision that Lookalike chooses."""
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    device, precision = torch.device(accelerator), choose_precision(None, accelerator)[0]
    backbone, dim = task.backbone()
    head = nn.Sequential(nn.Linear(dim, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, EMBEDDING))
    model = nn.Sequential(backbone, head).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    view = v1_view(SMALL) if task.size == SMALL.size else v1_view(LARGE, BLURS["pillow"])
    batches = loader(task.folder(settings), view, task.batch_size)

    def step(batch: Any) -> None:
        views = torch.cat(batch[0]).to(device, non_blocking=True)
        with autocast(accelerator, precision):
            loss = nt_xent(model(views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def once() -> list[float]:
        epochs = itertools.chain.from_iterable(itertools.repeat(batches))
        seconds, wait = steady(epochs, WARM, task.steps, step)
        return [task.steps * task.batch_size / seconds, wait]

    return waiting(once, {"precision": precision})
