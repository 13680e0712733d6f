"""Settings that both sides of a row share, and the timing of their rounds. Imports count in the memory of a side."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.build import build_backbone
from bench.sides import Settings
from data.views import ViewSpec
from utils.hardware import usable_cores
from utils.plan import BackboneConfig

SMALL = ViewSpec(32, saturation=0.2)
LARGE = ViewSpec(224, saturation=0.2, blur=0.5)
IN_MEMORY = 256  # images per batch of those that are in memory
WORKERS = min(8, usable_cores())  # threads of Lookalike, worker processes of the baselines
QUARTER = "resnet18x0.25"  # a quarter of the channels of ResNet-18
WARM = 4  # steps of a training run before the clock starts
BATCH = 32  # images per batch of views from files
BEFORE, BATCHES = 2 * WORKERS, 8 * WORKERS  # batches from files before and in a round
EPOCH = (
    BEFORE + BATCHES + 4 * WORKERS
)  # batches of an epoch from files, more than a loader has ready at the end of a round


@dataclass(frozen=True)
class Task:
    """A training run.

    flags: flags of the pretraining command that the other fields do not set. steps: in a round. patch_size: side of the
    patches where `network` is a vision transformer, else 0.
    """

    flags: str
    batch_size: int
    steps: int
    size: int = SMALL.size
    stem: str = "small"
    network: str = "resnet18"
    patch_size: int = 0

    @property
    def reads(self) -> str:
        """The field of `Settings` that names its folder."""
        return "cifar" if self.size == SMALL.size else "photographs"

    @property
    def command(self) -> str:
        name = "cifar10" if self.reads == "cifar" else "custom"
        network = f"{self.network} --patch_size {self.patch_size}" if self.patch_size else self.network
        stem = "" if self.patch_size else f" --stem {self.stem}"
        return f"{name} {network} {self.flags} --batch_size {self.batch_size}{stem} --num_workers {WORKERS}"

    def folder(self, settings: Settings) -> Path:
        folder: Path | None = getattr(settings, self.reads)
        assert folder is not None  # a row without its folder is left out
        return folder

    def backbone(self) -> tuple[nn.Module, int]:
        if self.patch_size:
            config = BackboneConfig(self.network, "imagenet", patch_size=self.patch_size)
            return build_backbone(config, self.size, self.size)  # of mixed sizes: small views may follow
        return build_backbone(BackboneConfig(self.network, self.stem), self.size)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(work: Callable[[], int], seconds: float) -> float:
    """The number that `work` returns, per second, over at least `seconds` seconds."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not done:
        done += work()
    return done / (time.perf_counter() - start)


def steady(
    batches: Iterable, warm: int, steps: int, step: Callable[[Any], None] = lambda batch: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:  # fmt: skip
    """[seconds, share of the seconds before a step] of `steps` steps after `warm` others, by this clock.

    batches: more than warm + steps, so that a loader has as many batches ready at the end as at the beginning.
    """
    wait = start = last = 0.0
    for done, batch in enumerate(batches, start=1):
        ready = clock()
        step(batch)
        if done in (warm, warm + steps):
            synchronize()
        if done > warm:
            wait += ready - last
        last = clock()
        if done == warm:
            start = last
        if done == warm + steps:
            return [last - start, wait / (last - start)]
    raise AssertionError(f"fewer than {warm + steps} batches")


def from_files(batches: Callable[[], Iterable], batch_size: int = BATCH) -> Callable[[], float]:
    """Views per second from files to batches of two views; `batches` begins an epoch of at least EPOCH."""

    def once() -> float:
        seconds, _ = steady(batches(), BEFORE, BATCHES)
        return 2 * batch_size * BATCHES / seconds

    return once


def jpeg_files(folder: Path) -> list[str]:
    files = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    assert files, f"no JPEG files in the folders of {folder}"
    return files


def each(files: list[str], decode: Callable[[str], Any]) -> int:
    """Decode all files and return their number; no image is kept."""
    for file in files:
        decode(file)
    return len(files)


def images_in_memory(spec: ViewSpec) -> torch.Tensor:
    """(N, 3, H, W) uint8 of the size of a view, at 224 pixels of 256; its cost does not depend on what they show."""
    side = spec.size if spec == SMALL else 256
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (IN_MEMORY, 3, side, side), dtype=torch.uint8, generator=g)


def autocast(accelerator: str, precision: str) -> torch.autocast:
    return torch.autocast(accelerator, torch.bfloat16, enabled=precision == "bf16-mixed")
