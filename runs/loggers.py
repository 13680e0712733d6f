"""Loggers of a run: metrics.csv and Weights & Biases."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger

from runs.dashboard import Dashboard
from utils.distributed import launched_rank, rank
from utils.files import read_metrics, write_text_atomically
from utils.plan import DashboardConfig


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
        """Nothing: args.json holds the settings."""

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

    def truncate_from_step(self, step: int) -> None:
        """Drop the rows of `step` and later, which a resumed run makes again."""
        rows = read_metrics(self.path)
        self._columns = list(rows[0]) if rows else []
        if rows and rank() == 0:
            self._write([row for row in rows if int(row["step"]) < step])

    def _write(self, rows: list[dict]) -> None:
        lines = [self._columns, *([row.get(c, "") for c in self._columns] for row in rows)]
        write_text_atomically(self.path, "".join(",".join(str(v) for v in line) + "\n" for line in lines))


class TruncateMetricsOnResume(Callback):
    """Drop the rows of metrics.csv that a resumed run writes again."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.truncate_from_step(trainer.global_step)


def build_loggers(dashboard: DashboardConfig, settings: Mapping[str, Any], folder: Path, resumed: bool) -> list[Logger]:
    """metrics.csv always; Weights & Biases on the first rank where the dashboard is on.

    settings: the run's configuration there.
    """
    loggers: list[Logger] = [MetricsCSV(folder)]
    if dashboard.wandb and launched_rank() == 0:
        loggers.append(Dashboard(dashboard, settings, folder, resumed))
    return loggers


def log_results(
    dashboard: DashboardConfig, settings: Mapping[str, Any], folder: Path, numbers: Mapping[str, float]
) -> None:
    """Write numbers as one point, and the folder's pictures to the dashboard; then close the loggers."""
    loggers = build_loggers(dashboard, settings, folder, resumed=False)
    log_pictures(loggers, sorted(folder.glob("*.png")))
    for logger in loggers:
        logger.log_metrics(dict(numbers), 0)
        logger.finalize("success")


def log_pictures(loggers: Sequence[Logger], pictures: Sequence[Path]) -> None:
    """Show pictures of a run on its dashboard, under their file names."""
    for logger in loggers:
        if isinstance(logger, Dashboard):
            logger.log_pictures(pictures)
