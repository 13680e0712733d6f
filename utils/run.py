"""A run on disk: its folder, what was asked, where it ran, what came out."""

import contextlib
import csv
import json
import os
import platform
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.distributed import launched_rank
from utils.errors import UserError
from utils.hardware import peak_memory

VERSION = "0.1.0"
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "numpy", "pillow", "scikit-learn")
MAY_CHANGE = {
    "resume",
    "gpus",
    "num_nodes",
    "num_workers",
    "batch_size",
    "data_folder",
    "cache",
    "wandb",
    "entity",
    "offline",
}


def write_atomically(path: Path, text: str) -> None:
    """The whole new file or the old one, whatever happens in between."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a run folder that main_contrastive.py wrote") from None
    except (OSError, json.JSONDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}); the run folder is damaged") from e


def new_run_id(args: Namespace, name: str) -> str:
    if args.run_id:
        return args.run_id
    if getattr(args, "wandb", False):  # so that the folder and the dashboard find each other
        return os.urandom(4).hex()
    return "-".join([name, args.dataset, args.backbone.replace("/", "_"), time.strftime("%Y%m%d-%H%M%S")])


def create_folder(args: Namespace, run_id: str) -> Path:
    """An empty folder for a new run; one that holds another run is refused."""
    folder = Path(args.output) / run_id
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} already holds a run; go on with it by --resume {folder}, or choose another --run_id")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the run folder {folder} ({e.strerror}); choose another --output") from e
    return folder


@contextlib.contextmanager
def new_folder(args: Namespace, run_id: str) -> Iterator[Path]:
    """The folder of a run, made by the first rank; one in which nothing was written is gone after an error."""
    folder = create_folder(args, run_id) if launched_rank() == 0 else Path(args.output) / run_id
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # it holds something, or it is gone already
            folder.rmdir()
        raise


def provenance() -> dict[str, Any]:
    """Version, commit, packages and machine behind a run."""
    return {
        "lookalike": VERSION,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "packages": {name: version(name) for name in PACKAGES},
    }


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def split_resume(argv: list[str]) -> tuple[Path | None, list[str]]:
    """(run folder of --resume or None, the other words)."""
    for i, word in enumerate(argv):
        if word == "--resume" and i + 1 < len(argv):
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if word.startswith("--resume="):
            return Path(word.partition("=")[2]), argv[:i] + argv[i + 1 :]
    return None, argv


def resumed_words(folder: Path, words: list[str]) -> tuple[list[str], list[str]]:
    """(words the run was started with, words to go on with): new flags are added, a retyped command stands alone."""
    if not (folder / "last.ckpt").exists():
        raise UserError(f"--resume {folder}: no last.ckpt in it; name a run folder that main_contrastive.py wrote")
    started = read_json(folder / "args.json")["argv"]
    retyped = bool(words) and not words[0].startswith("-")
    return started, words if retyped else started + words


def check_same_run(started: Namespace, now: Namespace) -> None:
    """A resumed run goes on exactly as it began: only where it runs may change."""
    for name, was in vars(started).items():
        if name not in MAY_CHANGE and getattr(now, name, None) != was:
            raise UserError(
                f"--{name} {getattr(now, name, None)} differs from the run's {was}: a resumed run goes on exactly as "
                f"it began; leave it out, or start a new run"
            )


def check_same_data(before: dict[str, Any], now: Namespace) -> None:
    """The images and the global batch of a resumed run are those that it began with."""
    was = before["resolved"]
    if was.get("fingerprint", before.get("fingerprint")) != now.fingerprint:  # runs of before kept it beside
        raise UserError(
            "the training images are not those that the run began with (other files, order or labels); put back what "
            "changed, or start a new run"
        )
    if was["global_batch"] != now.global_batch:
        raise UserError(
            f"a global batch of {now.global_batch} differs from the run's {was['global_batch']}; "
            f"change --batch_size so that batch_size x processes stays the same"
        )


def prepare_folder(resume: Path | None, typed: Namespace, resolved: Namespace, argv: list[str]) -> Path:
    """The run folder with its args.json: a new one, or the one to go on in. Only the first rank writes."""
    if resume:
        check_same_data(read_json(resume / "args.json"), resolved)
        return resume
    run_id = new_run_id(typed, typed.name or typed.method)
    if launched_rank() != 0:
        return Path(typed.output) / run_id
    folder = create_folder(typed, run_id)
    content = {"argv": argv, "typed": vars(typed), "resolved": vars(resolved)}
    write_json(folder / "args.json", content | provenance())
    return folder


def write_bad_images(folder: Path, bad: Mapping[str, str]) -> None:
    """bad_images.txt: the files that were left out, a line each, and behind a tab why. Only the first rank writes."""
    if bad and launched_rank() == 0:
        write_atomically(folder / "bad_images.txt", "".join(f"{path}\t{why}\n" for path, why in bad.items()))


def write_summary(folder: Path, args: Namespace, seconds: float) -> None:
    """summary.json: the last value of every number that says how the run went."""
    rows = read_metrics(folder / "metrics.csv")
    names = ["loss", "probe_acc", "val_probe_acc", *(f"knn_{k}" for k in args.knn_ks), "images_per_second", "data_wait"]
    numbers = {name: last_value(rows, name) for name in names}
    memory = {"seconds": round(seconds, 1), "peak_memory_bytes": peak_memory(args.accelerator)}
    write_json(folder / "summary.json", {k: v for k, v in numbers.items() if v is not None} | memory)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none where it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return [row for row in csv.DictReader(f) if None not in row.values()]


def last_value(rows: list[dict[str, str]], name: str) -> float | None:
    """The newest value of a metric, or None where it was never logged."""
    return next((float(row[name]) for row in reversed(rows) if row.get(name)), None)
