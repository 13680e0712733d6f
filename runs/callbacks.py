"""Callbacks of a run: progress bar, throughput, expected end."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from utils.optim import ScheduleConfig
from utils.plan import LoggingConfig, is_evaluated, is_evaluation, is_logged_step

SHOWN = {  # metric -> its text on the progress bar
    "loss": "loss {:.3f}",
    "probe_acc": "online probe {:.1f} %",
    "val_probe_acc": "val online probe {:.1f} %",
    "knn_20": "kNN 20 {:.1f} %",
    "quality/rankme": "RankMe {:.1f}",
    "images_per_second": "{:.0f} images/s",
    "data_wait_fraction": "waiting for data {:.0%}",
}
LINE_EVERY = 60.0  # seconds between two lines of a run without a terminal
END_AFTER = 20  # steps after which the end of the run is estimated; the first ones start workers and compile


def is_logged(trainer: Trainer, log_every: int) -> bool:
    """Whether the step that ended just now is a row of metrics.csv."""
    return trainer.global_step % log_every == 0


class LogFirstAndLastStep(Callback):
    """Let Lightning write the first and the last step to metrics.csv too: a short run shows its loss."""

    def __init__(self, log_every: int, total_steps: int) -> None:
        self.log_every, self.total_steps = log_every, total_steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + 1
        trainer.log_every_n_steps = 1 if is_logged_step(step, self.log_every, self.total_steps) else self.log_every  # type: ignore[attr-defined]


class ProgressBar(Callback):
    """One bar over the whole run with loss, accuracies and remaining time.

    Without a terminal a line per epoch, and within an epoch one a minute with the step, the last logged loss, images
    per second since the line before, and the remaining time. global_batch: images per optimizer step.
    """

    def __init__(self, schedule: ScheduleConfig, logging: LoggingConfig, global_batch: int) -> None:
        self.schedule, self.log_every, self.knn_every = schedule, logging.log_every, logging.knn_every
        self.global_batch = global_batch
        self.bar: Any = None
        self._line: tuple[int, float] | None = None  # step and time of the line before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            total = self.schedule.total_steps
            self.bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.bar is None and trainer.is_global_zero:
            self._print_step(trainer)
        if self.bar is None or trainer.global_step <= self.bar.n:
            return
        self.bar.set_description(f"epoch {trainer.current_epoch + 1}/{self.schedule.total_epochs}", refresh=False)
        if is_logged(trainer, self.log_every):  # reading a number waits for the device: only where one is logged
            self.bar.set_postfix_str(_short(trainer.logged_metrics), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line = None  # the time of an evaluation is not that of steps

    def _print_step(self, trainer: Trainer) -> None:
        step, now, total = trainer.global_step, time.monotonic(), self.schedule.total_steps
        before, began = self._line = self._line or (step, now)
        if now - began < LINE_EVERY or step == before:
            return
        self._line = step, now
        rate = (step - before) / (now - began)
        loss = _short({name: value for name, value in trainer.logged_metrics.items() if name == "loss"})
        speed = f"{rate * self.global_batch:.0f} images/s"
        print(f"step {step}/{total}  {loss}  {speed}  {duration((total - step) / rate)} left", flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.bar is None:
            epoch, total = trainer.current_epoch + 1, self.schedule.total_epochs
            evaluated = is_evaluated(epoch, self.knn_every, total)
            # Lightning keeps the last value of every metric: a kNN accuracy of an earlier epoch is not shown again.
            metrics = {k: v for k, v in trainer.logged_metrics.items() if evaluated or not is_evaluation(k)}
            print(f"epoch {epoch}/{total}  {_short(metrics)}", flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _short(logged: Mapping[str, Any]) -> str:
    return "  ".join(text.format(float(logged[name])) for name, text in SHOWN.items() if name in logged)


class ExpectedEnd(Callback):
    """Print once, after the first steps, when the remaining steps will be done at the speed so far."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._first: tuple[int, float] | None = None
        self._printed = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step, now = trainer.global_step, time.time()
        if self._first is None:
            self._first = step, now
        done = step - self._first[0]
        if self._printed or done < min(END_AFTER, self.total_steps // 4) or not done:
            return
        self._printed = True
        seconds = (now - self._first[1]) / done * (self.total_steps - step)
        if trainer.is_global_zero:
            end = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + seconds))
            print(f"  {'expected end':<16} {end}, in {duration(seconds)} (without evaluation)", flush=True)


def duration(seconds: float) -> str:
    """A time in hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "under 1 min"


class Throughput(Callback):
    """Log images_per_second (source images, not views, over whole training steps) and data_wait_fraction.

    data_wait_fraction is the share of that time between the end of a step and the arrival of the next batch.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.waited = self.elapsed = 0.0  # seconds since the start: waiting for data, and all
        self._reset()

    def _reset(self) -> None:
        self._step_ended: float | None = None
        self._batch_arrived = 0.0
        self._waiting = self._computing = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_arrived = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._step_ended is not None:  # the first step of an epoch starts the loader and may compile
            self._waiting += self._batch_arrived - self._step_ended
            self._computing += now - self._batch_arrived
            self._images += len(batch.index) * self.processes
            self.waited += self._batch_arrived - self._step_ended
            self.elapsed += now - self._step_ended
        self._step_ended = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda" and self._step_ended is not None:
            torch.cuda.synchronize()  # steps are queued ahead of the clock; what is still queued counts as work
            self._computing += time.perf_counter() - self._step_ended
        seconds = self._waiting + self._computing
        if seconds > 0 and self._images:
            speed = {"images_per_second": self._images / seconds, "data_wait_fraction": self._waiting / seconds}
            pl_module.log_dict(speed, on_step=False, on_epoch=True, rank_zero_only=True)
