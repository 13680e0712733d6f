"""Loggers of a run: metrics.csv, Weights & Biases and TensorBoard."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger

from runs.dashboard import Dashboard
from runs.tensorboard import TensorBoard
from utils.distributed import launched_rank, rank, rank_zero_print
from utils.errors import UserError
from utils.files import append_text, read_metrics, write_text_atomically
from utils.plan import DashboardConfig
from utils.scores import Rows, all_numbers


class MetricsCSV(Logger):
    """metrics.csv: one row per logged point, a column per metric, empty where a point does not have it.

    A row that cannot be written, because the disk is full, waits in memory and is written with the next one.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []  # rows that are not in the file yet
        self._drop_from: int | None = None  # the step from which rows of the file are to be dropped
        self._failed = False  # whether the newest attempt to write failed: it is said once

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: args.json holds the settings."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row; where the disk is full, say so once and go on."""
        self._go_on_after_failure(lambda: self.write(metrics, step))

    def finalize(self, status: str) -> None:
        """Try once more to write the rows that wait."""
        self._failed = False
        self._go_on_after_failure(self._write_pending)

    def write(self, metrics: dict[str, float], step: int | None) -> None:
        """Write a row, and before it those that wait; a full disk is a UserError and the file stays as it was."""
        if rank() == 0:
            self._pending.append({"step": step, **metrics})
            self._write_pending()

    def truncate_from_step(self, step: int) -> None:
        """Drop the rows of `step` and later, which a resumed run makes again."""
        rows = read_metrics(self.path)
        self._columns = list(rows[0]) if rows else []
        if rows and rank() == 0:
            self._drop_from = step
            self._go_on_after_failure(self._write_pending)

    def _go_on_after_failure(self, write: Callable[[], None]) -> None:
        try:
            write()
        except UserError as e:
            if not self._failed:
                count = f"{len(self._pending)} rows wait in memory" if self._pending else "old rows stay"
                rank_zero_print(f"  warning: {e}; {count} until there is room")
            self._failed = True

    def _write_pending(self) -> None:
        """Write the rows that wait, all or none."""
        if self._drop_from is not None or any(set(row) - set(self._columns) for row in self._pending):
            before = sys.maxsize if self._drop_from is None else self._drop_from
            rows = [*(row for row in read_metrics(self.path) if int(row["step"]) < before), *self._pending]
            columns = list(dict.fromkeys([*self._columns, *(name for row in rows for name in row)]))
            write_text_atomically(self.path, ",".join(columns) + "\n" + _lines(columns, rows))
            self._columns, self._drop_from = columns, None
        elif self._pending:
            append_text(self.path, _lines(self._columns, self._pending))
        self._pending, self._failed = [], False


def _lines(columns: list[str], rows: list[dict[str, Any]]) -> str:
    return "".join(",".join(str(row.get(c, "")) for c in columns) + "\n" for row in rows)


class TruncateMetricsOnResume(Callback):
    """Drop the rows of metrics.csv, and the points of TensorBoard, that a resumed run writes again."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV | TensorBoard):
                logger.truncate_from_step(trainer.global_step)


def build_loggers(dashboard: DashboardConfig, settings: Mapping[str, Any], folder: Path, resumed: bool) -> list[Logger]:
    """metrics.csv always; Weights & Biases and TensorBoard on the first rank where they are on.

    settings: the run's configuration there.
    """
    loggers: list[Logger] = [MetricsCSV(folder)]
    if dashboard.tensorboard and launched_rank() == 0:
        loggers.append(TensorBoard(settings, folder))
    if dashboard.wandb and launched_rank() == 0:
        loggers.append(Dashboard(dashboard, settings, folder, resumed))
    return loggers


def log_results(dashboard: DashboardConfig, settings: Mapping[str, Any], folder: Path, rows: Rows) -> None:
    """Write the numbers of an evaluation as one point, and its table and pictures to the dashboards; close the loggers.

    settings: the flags. Unlike the metrics of a training, numbers that cannot be written are an error: nothing comes
    after them.
    """
    if not settings.get("name") and rows:
        facts = (dashboard.name, rows[-1].method, str(settings["dataset"]), f"seed{settings['seed']}")
        dashboard = replace(dashboard, name="-".join(filter(None, facts)))
    loggers, numbers = build_loggers(dashboard, settings, folder, resumed=False), all_numbers(rows)
    log_pictures(loggers, sorted(folder.glob("*.png")), 0)
    for logger in loggers:
        if isinstance(logger, MetricsCSV):
            logger.write(dict(numbers), 0)
        else:
            logger.log_metrics(dict(numbers), 0)
        if isinstance(logger, Dashboard | TensorBoard) and any(row.scores for row in rows):
            logger.log_table(rows)
        logger.finalize("success")


def log_pictures(loggers: Sequence[Logger], pictures: Sequence[Path], step: int) -> None:
    """Show pictures of a run on its dashboards, under their file names."""
    for logger in loggers:
        if isinstance(logger, Dashboard | TensorBoard):
            logger.log_pictures(pictures, step)
