"""What a run says while it trains: metrics.csv, the progress bar, speed, Weights & Biases."""

import csv
import math
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from tqdm import tqdm

from utils.distributed import rank
from utils.errors import UserError
from utils.run import read_metrics, write_atomically


class MetricsCSV(Logger):
    """metrics.csv: one row per logged point, a column per metric, empty where a point does not have it."""

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """args.json has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if rank() != 0:
            return
        row = {"step": step, **metrics}
        if set(row) - set(self._columns):
            rows = read_metrics(self.path)
            self._columns = list(dict.fromkeys([*(rows[0] if rows else []), *self._columns, *row]))
            self._write([*rows, row])
        else:
            with self.path.open("a", newline="") as f:
                csv.DictWriter(f, self._columns).writerow(row)

    def forget_from(self, step: int) -> None:
        """Drop the rows of `step` and later, which a resumed run makes again."""
        rows = read_metrics(self.path)
        self._columns = list(rows[0]) if rows else []
        if rows and rank() == 0:
            self._write([row for row in rows if int(row["step"]) < step])

    def _write(self, rows: list[dict]) -> None:
        lines = [self._columns, *([row.get(c, "") for c in self._columns] for row in rows)]
        write_atomically(self.path, "".join(",".join(str(v) for v in line) + "\n" for line in lines))


class Progress(Callback):
    """One bar over the whole run with loss, probe accuracy and remaining time; a line per epoch without a terminal."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self._last = ""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            total = pl_module.args.total_steps
            self.bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        logged = trainer.logged_metrics
        fresh = pl_module.logs_now()  # to look at a number waits for the device: only where one is logged
        if fresh and not math.isfinite(logged.get("loss", 0.0)):
            raise UserError(
                f"the loss is {float(logged['loss'])} at step {trainer.global_step}; lower --lr or --precision 32"
            )
        if self.bar is not None and trainer.global_step > self.bar.n:
            self.bar.set_description(f"epoch {trainer.current_epoch + 1}/{pl_module.args.total_epochs}", refresh=False)
            if fresh:
                self.bar.set_postfix_str(_short(logged), refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        line = f"epoch {trainer.current_epoch + 1}/{pl_module.args.total_epochs}  {_short(trainer.logged_metrics)}"
        if trainer.is_global_zero and self.bar is None:
            print(line, flush=True)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


SHOWN = {
    "loss": "loss {:.3f}",
    "probe_acc": "probe {:.1f}",
    "val_probe_acc": "val probe {:.1f}",
    "knn_20": "kNN {:.1f}",
    "images_per_second": "{:.0f} images/s",
    "data_wait": "data {:.0%}",
}


def _short(logged: dict[str, Any]) -> str:
    return "  ".join(text.format(float(logged[name])) for name, text in SHOWN.items() if name in logged)


class Speed(Callback):
    """images_per_second: source images, not views, over whole training steps. data_wait: share of it before a step."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._from: float | None = None
        self._ready = 0.0
        self._wait = self._busy = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._ready = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._from is not None:  # the first step of an epoch starts the loader and may compile
            self._wait += self._ready - self._from
            self._busy += now - self._ready
            self._images += len(batch.index) * pl_module.args.processes
        self._from = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if torch.cuda.is_available() and self._from is not None:
            torch.cuda.synchronize()  # steps are queued ahead of the clock; what is still queued counts as work
            self._busy += time.perf_counter() - self._from
        seconds = self._wait + self._busy
        if seconds > 0 and self._images:
            speed = {"images_per_second": self._images / seconds, "data_wait": self._wait / seconds}
            pl_module.log_dict(speed, on_step=False, on_epoch=True, rank_zero_only=True)


def build_loggers(args: Namespace, folder: Path, resumed: bool) -> list[Logger]:
    """metrics.csv always; Weights & Biases under --wandb."""
    loggers: list[Logger] = [MetricsCSV(folder)]
    if args.wandb:
        try:
            from pytorch_lightning.loggers import WandbLogger

            loggers.append(
                WandbLogger(
                    name=args.name or getattr(args, "method", "linear"),
                    project=args.project,
                    entity=args.entity,
                    id=folder.name,
                    offline=args.offline,
                    save_dir=str(folder),
                    config=vars(args),
                    resume="allow" if resumed else None,
                )  # fmt: skip
            )
        except ModuleNotFoundError as e:
            raise UserError(f"--wandb needs Weights & Biases ({e}): pip install -r requirements.txt") from e
    return loggers


def log_rows(args: Namespace, folder: Path, rows: Mapping[str, Mapping[str, float]], pictures: list[Path]) -> None:
    """A table of numbers as one point "<row>/<column>" of metrics.csv, and with the pictures on the dashboard."""
    numbers = {f"{row}/{name}": value for row, columns in rows.items() for name, value in columns.items()}
    loggers = build_loggers(args, folder, resumed=False)
    log_pictures(loggers, pictures)
    for logger in loggers:
        logger.log_metrics(numbers, 0)
        logger.finalize("success")


def log_pictures(loggers: list[Logger], pictures: list[Path]) -> None:
    """The pictures of a run on its dashboard, under their file names."""
    from pytorch_lightning.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for picture in pictures:
                logger.log_image(picture.stem, [str(picture)])
