"""What a run will take, measured in a few steps through its own pipeline and method."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer

from runs.trainer import build_trainer, deterministic_algorithms, expected_messages_hidden
from utils.hardware import peak_memory
from utils.plan import Plan

WARM = 2  # batches before the clock starts: they start workers, choose algorithms and compile
MOST = 12  # batches at most
SECONDS = 20.0  # after which no further batch begins, where at least two are done


@dataclass(frozen=True)
class Estimate:
    """Times and memory of the first batches of a run.

    batches: how many were timed. start: seconds to the first batch (reading, decoding). batch_seconds: of one batch of
    one process, waiting for data included. wait_fraction: share of it that waited. device_bytes, host_bytes: peaks;
    device_bytes is None without a GPU.
    """

    batches: int
    start: float
    batch_seconds: float
    wait_fraction: float
    device_bytes: int | None
    host_bytes: int


class Clock(Callback):
    """Times at which batches begin and end; stops the Trainer when enough are measured."""

    def __init__(self) -> None:
        self.started = 0.0
        self.begins: list[float] = []
        self.ends: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.begins.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) > 1 and self.ends[-1] - self.started > SECONDS:
            trainer.should_stop = True


def estimate(plan: Plan, method: LightningModule, module: LightningDataModule) -> Estimate:
    """Train for a few steps, on one process and without any file; the method is not usable for a run afterwards."""
    hardware, clock = plan.hardware, Clock()
    devices = hardware.devices[:1] if isinstance(hardware.devices, list) else 1
    steps = min(plan.schedule.total_steps, -(-MOST // plan.batch.accumulate))
    few = replace(
        plan,
        hardware=replace(hardware, devices=devices, nodes=1, processes=1),
        schedule=replace(plan.schedule, total_steps=steps, schedule_steps=None),
    )
    cuda = hardware.accelerator == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with expected_messages_hidden(), deterministic_algorithms(hardware.deterministic):
        build_trainer(few, Path(), [clock], [], validate=False).fit(method, datamodule=module)
    warm = min(WARM, len(clock.ends) - 1)
    first = clock.ends[warm - 1] if warm else clock.begins[0]
    batches, seconds = len(clock.ends) - warm, clock.ends[-1] - first
    waited = sum(b - e for b, e in zip(clock.begins[warm:], clock.ends[warm - 1 :], strict=False)) if warm else 0.0
    device_bytes = torch.cuda.max_memory_allocated() if cuda else None
    return Estimate(
        batches, clock.begins[0] - clock.started, seconds / batches, waited / seconds, device_bytes, peak_memory("cpu")
    )


def disk_needed(plan: Plan, checkpoint_bytes: int, backbone_bytes: int) -> int:
    """Bytes of a run folder at its fullest: last.ckpt, the one before, the next while it is written, and kept ones."""
    keep = plan.checkpoint.keep_every
    kept = plan.schedule.total_epochs // keep if keep else 0
    return (3 + kept) * checkpoint_bytes + backbone_bytes


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free
