"""Print what a training step costs on the pretended CUDA device: python3 -m tests.pretended_gpu_table

One row per method, precision and pipeline. difference: largest one from parameters and buffers of the same steps on the
CPU. waits, launches and MB: in a step, on the stream that trains; launches are calls of operators of ATen, and MB what
their operands and results hold. overflow: what moves in a step with infinite gradients, after another one. The backbone
has two convolutions, the batch 8 images; ready views have 16 pixels, those of a pipeline 32.
"""

import contextlib
import io
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from methods import METHODS
from tests.helpers.pretended_cuda import pretended_cuda
from tests.helpers.short_training import VARIANTS, Training, largest_difference, moved_by_step, train
from utils.errors import UserError

PRECISIONS = ("32", "bf16-mixed", "16-mixed")
PIPELINES = ("memory", "stream", "torchvision")
HEAD = ("method", "precision", "views", "difference", "waits", "launches", "MB", "overflow")


def main() -> None:
    """Print the table in Markdown, then every place that waits."""
    places: Counter[str] = Counter()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    with tempfile.TemporaryDirectory() as folder:
        for variant, (name, words) in VARIANTS.items():
            cpu = train_quietly(Path(folder), name, *words)
            for precision in PRECISIONS:
                print_row(Path(folder), variant, precision, "ready", places, cpu if precision == "32" else None)
        for name in METHODS:
            for pipeline in PIPELINES:
                print_row(Path(folder), name, "bf16-mixed", pipeline, places)
    for place, number in sorted(places.items()):
        print(f"wait: {place}, in {number} rows")


def print_row(
    folder: Path, variant: str, precision: str, views: str, places: Counter[str], cpu: Training | None = None
) -> None:
    """Print a row, and add its waits to `places`. cpu: the same steps on the CPU."""
    name, words = VARIANTS[variant]
    words = (*words, "--precision", precision)
    cells: list[str] = [variant, precision, views]
    try:
        with pretended_cuda() as device:
            run = train_quietly(folder, name, *words, device=device, pipeline=None if views == "ready" else views)
        waits = run.waits_of_training
        places.update(waits.keys())
        cells.append(f"{largest_difference(cpu, run):.0e}" if cpu else "")
        cells += [str(sum(waits.values())), str(run.launches), f"{run.bytes / 1e6:.2f}"]
    except UserError as e:
        cells += [str(e).split(";")[0], "", "", ""]
    cells.append(after_overflow(folder, name, *words) if precision == "16-mixed" else "")
    print(f"| {' | '.join(cells)} |", flush=True)


def after_overflow(folder: Path, name: str, *words: str) -> str:
    """What infinite gradients in the first and in the third step leave."""
    try:
        with pretended_cuda() as device:
            run = train_quietly(folder, name, *words, "--scheduler", "cosine", device=device, overflow=(0, 2))
    except UserError as e:
        return f"ends: {str(e).split(';')[0]}"
    return ", ".join(f"{part} moves" for part in moved_by_step(run, 2)) or "nothing moves"


def train_quietly(*args: Any, **kwargs: Any) -> Training:
    """`train` without its messages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return train(*args, **kwargs)


if __name__ == "__main__":
    main()
