"""Cost of a checkpoint a minute: the application's whole run for a minute, with a save at its beginning or without.

The writer's thread shares the cores of the row with the training; with one core its work is counted in full.
"""

import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

from bench.sides import Settings, Work
from bench.task import WARM, Task, synchronize
from bench.train import read
from data.pipelines.choose import build_pipeline, choose_pipeline
from data.views import view_specs
from methods import METHODS
from runs.checkpoint import LAST, CheckpointCallback
from runs.finite import NonFiniteLossCheck
from runs.loggers import MetricsCSV
from runs.trainer import build_trainer, expected_messages_hidden
from utils.files import write_json
from utils.plan import CheckpointConfig

MINUTE = 60.0  # seconds
ONLY_WHEN_ASKED = CheckpointConfig(1e9, "seconds")


class Minute(Callback):
    """Count the images of a minute after the first few steps; save at its beginning where `checkpoint` is given.

    rate: images per second. cpu_rate: images per second of processor time of all threads, which other work on the
    machine changes less. blocked: seconds that the training thread spent on the save. written: seconds until the files
    were on the disk.
    """

    def __init__(self, batch_size: int, checkpoint: CheckpointCallback | None):
        self.batch_size, self.checkpoint = batch_size, checkpoint
        self.done, self.start, self.cpu_start = 0, 0.0, 0.0
        self.rate = self.cpu_rate = 0.0
        self.blocked = self.written = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.rate:  # Lightning finishes what it began
            return
        self.done += 1
        if self.done == WARM:
            synchronize()
            self.start, self.cpu_start = time.perf_counter(), time.process_time()
            if self.checkpoint:
                self.checkpoint.begin(trainer, pl_module)
                self.blocked = time.perf_counter() - self.start
        elif self.done > WARM:
            seconds = time.perf_counter() - self.start
            if self.checkpoint and not self.written and trainer.strategy.checkpoint_io.writer.is_idle:
                self.written = seconds
            if seconds >= MINUTE:
                synchronize()
                images = (self.done - WARM) * self.batch_size
                self.rate = images / (time.perf_counter() - self.start)
                self.cpu_rate = images / (time.process_time() - self.cpu_start)
                trainer.should_stop = True


def minute(settings: Settings, task: Task, save: bool) -> Work:
    """Rounds of a minute of training, in images per second."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    args, plan, data = read(settings, task)
    accelerator, size = plan.hardware.accelerator, plan.views.large_size
    method = METHODS[plan.method](args, plan, *task.backbone())
    pipeline, _ = choose_pipeline("auto", data, size, None, accelerator)
    specs = view_specs(plan.views, method.large_views)
    module = build_pipeline(pipeline, data, specs, plan.batch.batch_size, plan.seed, 4, None, accelerator)
    clocks: list[Minute] = []
    sizes: list[int] = []

    def once() -> float:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_json(folder / "args.json", {"run": name})
            finite = NonFiniteLossCheck(plan.logging.log_every, folder)
            checkpoint = CheckpointCallback(folder, {}, ONLY_WHEN_ASKED, before_save=finite.check_before_save)
            clock = Minute(plan.batch.global_batch, checkpoint if save else None)
            callbacks = [finite, *([checkpoint] if save else []), clock]
            with expected_messages_hidden():
                trainer = build_trainer(plan, folder, callbacks, [MetricsCSV(folder)], validate=False)
                trainer.fit(method, datamodule=module)
            clocks.append(clock)
            if save:
                sizes.append((folder / LAST).stat().st_size)
        return clock.rate

    def facts() -> dict[str, Any]:
        names = ("cpu_rate", "blocked", "written") if save else ("cpu_rate",)
        medians = {name: statistics.median(getattr(clock, name) for clock in clocks[1:] or clocks) for name in names}
        return medians | {"precision": plan.hardware.precision} | ({"checkpoint_bytes": sizes[-1]} if save else {})

    return Work(once, facts)
