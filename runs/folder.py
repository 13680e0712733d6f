"""A run folder: its name, what was asked, and the final numbers."""

import contextlib
import dataclasses
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils.distributed import launched_rank
from utils.errors import UserError
from utils.files import last_value, read_metrics, write_json, write_text_atomically
from utils.hardware import peak_memory
from utils.plan import Plan
from utils.provenance import provenance

AUTO = "auto"  # --resume auto: start the run --run_id, or go on with it
BEFORE_SAVING = ("args.json", "metrics.csv", "bad_images.txt", "wandb")  # what a run writes before its first checkpoint


def new_run_id(requested: str | None, name: str, dataset: str, backbone: str, wandb: bool = False) -> str:
    """Name of a new run folder: as requested, or made from the run's name, its data, its backbone and the time.

    With Weights & Biases it is an id that the dashboard uses too.
    """
    if requested:
        return requested
    if wandb:
        return os.urandom(4).hex()
    return "-".join([name, dataset, backbone.replace("/", "_"), time.strftime("%Y%m%d-%H%M%S")])


def create_run_folder(output: str, run_id: str, again: bool = False) -> Path:
    """An empty folder for a new run; one that holds another run is refused.

    again: a run that died before its first checkpoint may be started again in its folder.
    """
    folder = Path(output) / run_id
    if folder.is_dir() and any(folder.iterdir()) and not (again and _saved_nothing(folder)):
        raise UserError(f"{folder} already holds a run; resume it with --resume {folder}, or choose another --run_id")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot create the run folder {folder} ({e.strerror}); choose another --output") from e
    return folder


def _saved_nothing(folder: Path) -> bool:
    """Whether the folder holds only what a run writes before its first checkpoint."""
    names = {path.name.removeprefix(".").removesuffix(".part") for path in folder.iterdir()}
    return "args.json" in names and not (folder / "last.ckpt").exists() and names <= {*BEFORE_SAVING, "last.ckpt"}


def discard_unsaved(folder: Path) -> None:
    """Remove what a run wrote that stops before its first step, so that its name is free again."""
    if _saved_nothing(folder):
        for name in ("args.json", "metrics.csv", "bad_images.txt"):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the logs of a dashboard stay
            folder.rmdir()


@contextlib.contextmanager
def temporary_on_error(output: str, run_id: str) -> Iterator[Path]:
    """The folder of a run, created by the first rank; removed after an error if nothing was written to it."""
    folder = create_run_folder(output, run_id) if launched_rank() == 0 else Path(output) / run_id
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # it holds something, or is gone already
            folder.rmdir()
        raise


def start_run_folder(args: Namespace, plan: Plan, argv: list[str]) -> Path:
    """The folder of a new pretraining run with its args.json; only the first rank writes."""
    dashboard = plan.logging.dashboard
    run_id = new_run_id(args.run_id, dashboard.name, args.dataset, args.backbone, dashboard.wandb)
    if launched_rank() != 0:
        return Path(args.output) / run_id
    folder = create_run_folder(args.output, run_id, again=args.resume == AUTO)
    write_json(
        folder / "args.json",
        {"argv": argv, "flags": vars(args), "plan": dataclasses.asdict(plan)} | provenance(),
    )
    return folder


def write_bad_images(folder: Path, bad: Mapping[str, str]) -> None:
    """bad_images.txt: a line for each excluded file, with the reason behind a tab. Only the first rank writes."""
    if bad and launched_rank() == 0:
        write_text_atomically(folder / "bad_images.txt", "".join(f"{path}\t{why}\n" for path, why in bad.items()))


def write_summary(folder: Path, plan: Plan, seconds: float) -> None:
    """summary.json: the last value of every number that tells how the run went."""
    rows = read_metrics(folder / "metrics.csv")
    knn = [f"knn_{k}" for k in plan.logging.knn_k]
    names = ["loss", "probe_acc", "val_probe_acc", *knn, "images_per_second", "data_wait_fraction"]
    numbers = {name: last_value(rows, name) for name in names}
    cost = {"seconds": round(seconds, 1), "peak_memory_bytes": peak_memory(plan.hardware.accelerator)}
    write_json(folder / "summary.json", {k: v for k, v in numbers.items() if v is not None} | cost)
