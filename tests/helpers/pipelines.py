"""Data modules of every pipeline, their training batches, and photographs to compare them on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from data.datasets import IMAGENET_STD, Data, read_dataset
from data.pipelines.base import DataModule
from data.pipelines.choose import PIPELINES, build_pipeline
from data.views import ViewSpec
from tests.helpers.dali import WITH_DALI
from tests.helpers.images import digit_files, read
from utils.batch import Batch

CPU = torch.device("cpu")
SPECS = [ViewSpec(32, blur=0.5), ViewSpec(32, solarize=0.5), ViewSpec(16, scale=(0.05, 0.3), count=2)]
EVERY_PIPELINE = [pytest.param(name, marks=WITH_DALI if name == "dali" else []) for name in PIPELINES]
EVERY_FAST_PIPELINE = [param for param in EVERY_PIPELINE if param.values != ("torchvision",)]  # all but the reference


def digits_for(name: str) -> Data:
    """The digits, as files for the pipeline that reads only files."""
    return digit_files() if name == "dali" else read()


def build(
    name: str, data: Data | None = None, specs: list[ViewSpec] = SPECS, workers: int = 0, batch_size: int = 16,
    cache: Path | None = None,
) -> DataModule:  # fmt: skip
    """A data module on the CPU, of the digits by default."""
    data = data or digits_for(name)
    return build_pipeline(name, data, specs, batch_size, 0, workers, str(cache) if cache else None, "cpu")


def training_batches(module: DataModule, epoch: int = 0, at_most: int | None = None) -> Iterator[Batch]:
    """The batches that the Trainer would hand to the method."""
    loader = module.train_dataloader()
    module.order.set_epoch(epoch)
    for i, batch in enumerate(loader):
        if i == at_most:
            return
        yield module.on_after_batch_transfer(module.transfer_batch_to_device(batch, CPU, 0), 0)


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Let batch samplers deal out images as in process `rank` of `world`, without other processes."""
    monkeypatch.setattr("data.pipelines.loaders.rank", lambda: rank)
    monkeypatch.setattr("data.pipelines.loaders.world_size", lambda: world)


def smooth_image(size: tuple[int, int], seed: int, mode: str = "RGB"):
    """A Pillow image of (width, height) that is as smooth as a photograph."""
    rng = np.random.default_rng(seed)
    rough = torch.from_numpy(rng.integers(0, 256, (3, size[1] // 9 + 2, size[0] // 9 + 2), dtype=np.uint8))
    return TF.to_pil_image(TF.resize(rough, [size[1], size[0]], antialias=True)).convert(mode)


def photograph_folder(root: Path) -> Data:
    """50 JPEG files between 60 and 260 pixels, 10 of them for validation, some gray."""
    rng = np.random.default_rng(0)
    for i in range(50):
        path = root / ("val" if i % 5 == 4 else "train") / f"c{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = rng.integers(60, 260, 2).tolist()
        smooth_image((width, height), i, "L" if i % 9 == 8 else "RGB").save(path, quality=90)
    return read_dataset("custom", str(root), None, None)


def differences(a: Batch, b: Batch) -> list[torch.Tensor]:
    """Differences between the views of two batches of photographs, in steps of 255."""
    scale = torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
    return [(v - w).abs() * scale for v, w in zip(a.views, b.views, strict=True)]


def equal_views(a, b) -> bool:
    """Whether two batches are of the same images and equal to the bit."""
    return torch.equal(a.index, b.index) and all(torch.equal(v, w) for v, w in zip(a.views, b.views, strict=True))
