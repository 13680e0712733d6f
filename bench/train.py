"""Our side of training: the application's whole run, and the bare step on ready-made tensors.

The whole run is the application's own: Trainer, data module, augmentation, online probe, log. The bare step is the
same method, optimizer and batch, forward, backward and step, on tensors that are already there.
"""

import itertools
import logging
import shlex
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

from bench.sides import Settings, Work, note_workers, waiting
from bench.task import WARM, Task, autocast, steady, synchronize
from cli.plan import resolve
from cli.pretrain import parse_pretraining
from data.allocator import keep_freed_memory
from data.datasets import DATASETS, Data, read_dataset
from data.pipelines.choose import build_pipeline, choose_pipeline
from data.views import view_specs
from methods import METHODS
from runs.callbacks import Throughput
from runs.loggers import MetricsCSV
from runs.trainer import build_trainer
from utils.batch import Batch
from utils.optim import build_optimizer, parameter_groups


class Clock(Callback):
    """The steps behind the first few, from the end of one to the end of the last: as `bench.task.steady`."""

    def __init__(self, task: Task):
        self.task = task
        self.done, self.wait, self.start, self.last = 0, 0.0, 0.0, 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.done >= WARM:
            self.wait += time.perf_counter() - self.last

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done += 1
        if self.done in (WARM, WARM + self.task.steps):
            synchronize()
        self.last = time.perf_counter()
        if self.done == WARM:
            self.start = self.last
        if self.done == WARM + self.task.steps:
            note_workers()  # Lightning ends them when a run ends

    def speed(self) -> list[float]:
        """[images per second, share of the time before a step]"""
        assert self.done == WARM + self.task.steps
        seconds = self.last - self.start
        return [self.task.steps * self.task.batch_size / seconds, self.wait / seconds]


def read(settings: Settings, task: Task) -> tuple[Namespace, Data]:
    words = f"{task.command} --steps {WARM + task.steps} --knn_every 0 --scheduler none --train_dir . --data_folder"
    typed = parse_pretraining([*shlex.split(words), str(task.folder(settings))], METHODS, DATASETS)
    data = read_dataset(typed.dataset, typed.data_folder, typed.train_dir, typed.val_dir)
    return resolve(typed, len(data.train), len(data.train), data.classes, data.train.fingerprint()), data


def whole(settings: Settings, task: Task) -> Work:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    args, data = read(settings, task)
    method = METHODS[args.method](args, *task.backbone())
    pipeline, _ = choose_pipeline("auto", data, args.large_size)
    module = build_pipeline(pipeline, data, view_specs(args, method.large_views), args)

    def once() -> list[float]:
        clock = Clock(task)
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(args, [Throughput(), clock], [MetricsCSV(Path(folder))], validate=False)
            trainer.fit(method, datamodule=module)
        return clock.speed()

    return waiting(once, {"precision": args.used_precision, "pipeline": pipeline})


def bare(settings: Settings, task: Task) -> Work:
    args, _ = read(settings, task)
    keep_freed_memory()  # as the whole run does
    device = torch.device(args.accelerator)
    method = METHODS[args.method](args, *task.backbone()).to(device).train()
    n, size = args.batch_size, args.large_size
    views = [torch.randn(n, 3, size, size, device=device) for _ in range(method.large_views)]
    ready = Batch(torch.arange(n, device=device), views, torch.zeros(n, dtype=torch.long, device=device))
    optimizer = build_optimizer(parameter_groups(method, args), args)

    def step(batch: Batch) -> None:
        with autocast(args.accelerator, args.used_precision):
            out = method.compute_losses(batch)
            loss = out["loss"] + out["probe_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_optimizer_step(0.0)

    def once() -> float:
        return task.steps * n / steady(itertools.repeat(ready), WARM, task.steps, step)[0]

    return Work(once, lambda: {"precision": args.used_precision})
