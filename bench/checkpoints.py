"""Cost of a checkpoint a minute: the application's whole run for a minute, with a save at its beginning or without.

The writer's thread shares the one core of the row with the training, so its work is counted in full. On a CPU time is
processor time of all threads: on that one core it is what a clock shows where nothing else runs, and other work on the
machine changes it less.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

from bench.sides import Settings, Work
from bench.task import WARM, Task, synchronize
from bench.train import application
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

    rate: images per second. blocked: seconds that the training thread spent on the save.
    """

    def __init__(self, batch_size: int, cuda: bool, checkpoint: CheckpointCallback | None):
        self.batch_size, self.checkpoint = batch_size, checkpoint
        self.clock = time.perf_counter if cuda else time.process_time
        self.own_clock = time.perf_counter if cuda else time.thread_time
        self.done, self.start, self.rate, self.blocked = 0, 0.0, 0.0, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.rate:  # Lightning finishes what it began
            return
        self.done += 1
        if self.done == WARM:
            synchronize()
            self.start, before = self.clock(), self.own_clock()
            if self.checkpoint:
                self.checkpoint.begin(trainer, pl_module)
                self.blocked = self.own_clock() - before
        elif self.done > WARM and self.clock() - self.start >= MINUTE:
            synchronize()
            self.rate = (self.done - WARM) * self.batch_size / (self.clock() - self.start)
            trainer.should_stop = True


def minute(settings: Settings, task: Task, save: bool) -> Work:
    """Rounds of a minute of training, in images per second."""
    plan, method, _, module = application(settings, task)
    cuda = plan.hardware.accelerator == "cuda"
    clocks: list[Minute] = []
    sizes: list[int] = []

    def once() -> float:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_json(folder / "args.json", {"run": name})
            finite = NonFiniteLossCheck(plan.logging.log_every, folder)
            checkpoint = CheckpointCallback(folder, {}, ONLY_WHEN_ASKED, before_save=finite.check_before_save)
            clock = Minute(plan.batch.global_batch, cuda, checkpoint if save else None)
            callbacks = [finite, *([checkpoint] if save else []), clock]
            with expected_messages_hidden():
                trainer = build_trainer(plan, folder, callbacks, [MetricsCSV(folder)], validate=False)
                trainer.fit(method, datamodule=module)
            if save:
                clocks.append(clock)
                sizes.append((folder / LAST).stat().st_size)
        return clock.rate

    def facts() -> dict[str, Any]:
        about: dict[str, Any] = {"precision": plan.hardware.precision}
        if save:
            blocked = statistics.median(clock.blocked for clock in clocks)
            about |= {"seconds_blocked": blocked, "checkpoint_bytes": sizes[-1]}
        return about

    return Work(once, facts)
