"""Training by Lookalike: the application's whole run, and the bare step on ready-made tensors.

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

import numpy as np
import torch
from pytorch_lightning import Callback

from backbones.build import build_backbone, choose_stem
from bench.sides import Settings, Work, note_workers, waiting
from bench.task import WARM, WORKERS, Task, autocast, steady, synchronize
from cli.plan import resolve
from cli.pretrain import method_args, parse_pretraining
from data.allocator import keep_freed_memory
from data.datasets import DATASETS, Data, read_dataset, training_set
from data.pipelines.base import DataModule
from data.pipelines.choose import build_pipeline, choose_pipeline
from data.views import view_specs
from methods import METHODS
from methods.base import Method
from runs.callbacks import Throughput
from runs.loggers import MetricsCSV
from runs.trainer import build_trainer, expected_messages_hidden
from utils.batch import Batch
from utils.cluster_file import Clusters, write_clusters
from utils.frozen import FrozenNetwork
from utils.plan import BackboneConfig, Plan

CLUSTERS = 1000  # of ClusterFit


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


def read(settings: Settings, task: Task) -> tuple[Namespace, Plan, Data]:
    """The method's own flags, the plan and the images of a task."""
    flags = f"{task.command} --steps {WARM + task.steps} --knn_every 0 --scheduler none --train_dir . --data_folder"
    args = parse_pretraining([*shlex.split(flags), str(task.folder(settings))], METHODS, DATASETS)
    data = read_dataset(args.dataset, args.data_folder, args.train_dir, args.val_dir)
    stem = choose_stem(args.stem, args.backbone, args.large_size)
    return method_args(args, METHODS), resolve(args, training_set(args.dataset, data), stem), data


def application(settings: Settings, task: Task) -> tuple[Plan, Method, str, DataModule]:
    """The plan, the method, the name of the pipeline and the data module of the application's whole run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    args, plan, data = read(settings, task)
    accelerator, size = plan.hardware.accelerator, plan.views.large_size
    method = build_method(args, plan, data, task)
    if plan.hardware.compile:
        method.compile_losses()
    pipeline, _ = choose_pipeline("auto", data, size, None, accelerator)
    specs = view_specs(plan.views, method.large_views)
    batch_size, precision = plan.batch.batch_size, plan.hardware.precision
    module = build_pipeline(pipeline, data, specs, batch_size, plan.seed, WORKERS, None, accelerator, precision)
    return plan, method, pipeline, module


def build_method(args: Namespace, plan: Plan, data: Data, task: Task) -> Method:
    """The method of a task; its teacher is a whole ResNet-18 with random weights, its clusters are random."""
    teacher: dict[str, Any] = {}
    if "teacher" in args:
        teacher["teacher"] = FrozenNetwork(*build_backbone(BackboneConfig("resnet18", "small"), task.size))
    with tempfile.TemporaryDirectory() as folder:
        if "cluster_file" in args:
            args.cluster_file = str(Path(folder) / args.cluster_file)
            ids = np.arange(len(data.train)) % CLUSTERS
            images = plan.training_set
            about = {"dataset": images.name, "images": images.images, "fingerprint": images.fingerprint}
            none, centroids = np.zeros((0, 0), np.float32), np.zeros((CLUSTERS, 1), np.float32)
            write_clusters(Path(args.cluster_file), Clusters(ids, ids[:0], centroids, none, none, about))
        return METHODS[plan.method](args, plan, *task.backbone(), **teacher)


def whole(settings: Settings, task: Task) -> Work:
    """Rounds of the application's whole run."""
    plan, method, pipeline, module = application(settings, task)

    def once() -> list[float]:
        clock = Clock(task)
        with tempfile.TemporaryDirectory() as folder:
            callbacks = [Throughput(plan.hardware.processes), clock]
            with expected_messages_hidden():
                trainer = build_trainer(plan, Path(folder), callbacks, [MetricsCSV(Path(folder))], validate=False)
                trainer.fit(method, datamodule=module)
        return clock.speed()

    return waiting(once, {"precision": plan.hardware.precision, "pipeline": pipeline})


def bare(
    settings: Settings, task: Task, compile_mode: str | None = None, cpu_time: bool = False, as_built: bool = False
) -> Work:
    """Rounds of the bare step on ready tensors.

    compile_mode: compiled in this mode of torch.compile. cpu_time: without a GPU, count the time of the process on the
    CPU, which other work on the machine hardly changes, in place of the time that passes. as_built: without the forms
    of layers that are fastest on the device.
    """
    args, plan, data = read(settings, task)
    keep_freed_memory()  # as the whole run does
    hardware = plan.hardware
    device = torch.device(hardware.accelerator)
    method = build_method(args, plan, data, task).to(device).train()
    if not as_built:
        method.setup("fit")
    n, size = plan.batch.batch_size, plan.views.large_size
    views = [torch.randn(n, 3, size, size, device=device) for _ in range(method.large_views)]
    ready = Batch(torch.arange(n, device=device), views, torch.zeros(n, dtype=torch.long, device=device))
    optimizer = method.build_optimizer()
    clock = time.process_time if cpu_time and hardware.accelerator == "cpu" else time.perf_counter
    if compile_mode:
        method.compile_losses(compile_mode)

    def step(batch: Batch) -> None:
        with autocast(hardware.accelerator, hardware.precision):
            out = method.compute_losses(batch)
            loss = out["loss"] + out["probe_loss"]
        optimizer.zero_grad()
        loss.backward()
        method.on_before_optimizer_step(optimizer)
        optimizer.step()
        method.after_optimizer_step()

    def once() -> float:
        return task.steps * n / steady(itertools.repeat(ready), WARM, task.steps, step, clock)[0]

    return Work(once, lambda: {"precision": hardware.precision})
