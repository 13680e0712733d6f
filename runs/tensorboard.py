"""TensorBoard as a logger that cannot stop a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger

from runs.metric_groups import best_and_last, grouped
from utils.distributed import rank_zero_print
from utils.errors import UserError
from utils.files import read_metrics
from utils.scores import Rows

FOLDER = "tensorboard"  # in the run folder


class TensorBoard(Logger):
    """Event files in the run folder. Only for the first rank. A resumed run adds a file, from its first step on.

    An error while writing is said once, and nothing is written from then on.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path):
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as e:
            raise UserError(
                f"--tensorboard needs TensorBoard ({e}): pip install -r requirements-tensorboard.txt"
            ) from e
        self.folder, self.settings = folder, settings
        self._open: Callable[[int], Any] = lambda step: SummaryWriter(str(folder / FOLDER), purge_step=step)
        self._writer: Any = None
        self._resumed_at: int | None = None
        self._off = False

    def _do(self, step: int, action: Callable[[Any], None]) -> None:
        if self._off:
            return
        try:
            if self._writer is None:
                self._writer = self._open(step if self._resumed_at is None else self._resumed_at)
                self._writer.add_text("settings", _table(("flag", "value"), list(self.settings.items())), step)
            action(self._writer)
        except Exception as e:
            self._off = True
            rank_zero_print(f"  note: TensorBoard is off from here: {e}; metrics.csv has all numbers")

    def truncate_from_step(self, step: int) -> None:
        """Hide the points of `step` and later in older files, which a resumed run makes again."""
        self._resumed_at = step

    @property
    def name(self) -> str:
        return FOLDER

    @property
    def version(self) -> str:
        return self.folder.name

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the settings are there from the start."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        def write(writer: Any) -> None:
            for name, value in metrics.items():
                writer.add_scalar(grouped(name), value, step)

        self._do(step or 0, write)

    def log_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Show pictures under their file names."""
        for picture in pictures:
            pixels = np.asarray(Image.open(picture).convert("RGB"))
            self._do(step, lambda writer, p=picture, x=pixels: writer.add_image(p.stem, x, step, dataformats="HWC"))  # type: ignore[misc]

    def log_table(self, rows: Rows) -> None:
        """Show the scores of an evaluation, a row per network."""
        columns, cells = columns_and_cells(rows)
        self._do(0, lambda writer: writer.add_text("evaluation", _table(columns, cells), 0))

    def finalize(self, status: str) -> None:
        """Write the best and the last values as text, and everything that waits."""
        if self._writer is not None:
            rows = read_metrics(self.folder / "metrics.csv")
            step = int(rows[-1]["step"]) if rows else 0
            best = _table(("metric", "value"), sorted(best_and_last(rows).items()))
            self._do(step, lambda writer: writer.add_text("summary", best, step))
            self._do(step, lambda writer: writer.flush())


def columns_and_cells(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    """(names of the columns, cells of each network's row; None where it lacks a score) of an evaluation."""
    numbers = [row.numbers() for row in rows]
    names = list(dict.fromkeys(name for row in numbers for name in row))
    cells = [
        [row.title, row.backbone, row.method, row.pretrained_on, *(scores.get(name) for name in names)]
        for row, scores in zip(rows, numbers, strict=True)
    ]
    return ["run", "backbone", "method", "pretrained_on", *names], cells


def _table(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
