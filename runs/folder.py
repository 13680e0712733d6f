"""A run folder: its name, its one writer, what was asked, and the final numbers."""

import contextlib
import dataclasses
import itertools
import os
import shlex
import shutil
import time
import uuid
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path

from filelock import FileLock, Timeout

from utils.arg_types import folder_name
from utils.distributed import broadcast_str, launched_rank, rank_zero_print
from utils.errors import UserError
from utils.files import create_json, entry, last_value, read_json, read_metrics, write_json, write_text_atomically
from utils.hardware import peak_memory
from utils.ledger import Images, check_ledger, data_facts, with_definitions, write_record
from utils.plan import Plan
from utils.provenance import provenance

AUTO = "auto"  # --resume auto: start the run --run_id, or resume it
LOCK = ".lock"  # in the run folder, while a process writes there; the system frees it when the process ends
BEFORE_CHECKPOINT = {
    "args.json",
    "metrics.csv",
    "bad_images.txt",
    "post_mortem.json",
    "alarms.json",
    "views.json",
    "neighbours.json",
    "embedding.json",
    "attention.json",
    "report.html",
}  # and pictures, and LOGS
LOGS = {"wandb", "tensorboard"}  # folders of dashboards
LONGEST_NAME = 100  # bytes of --name in an automatic run id; data set, backbone and time follow


class FolderLock(FileLock):
    """The lock of a run folder; where the file system knows no locks, there is none rather than one that stays."""

    def _fallback_to_soft_lock(self) -> None:
        raise NotImplementedError


_held: dict[Path, FolderLock] = {}  # the folders that this process writes


def _forget_in_child() -> None:
    """Leave the locks to the process that forked this one: a worker that outlives it must not keep them."""
    for lock in _held.values():
        if (fd := lock._context.lock_file_fd) is not None:
            lock._context.lock_file_fd = None  # so that the child, when it ends, does not free the parent's lock
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def lock_folder(folder: Path) -> None:
    """Make this process the one writer of a folder until release_folders, or its end, kill -9 included."""
    if (key := folder.resolve()) in _held:
        return
    lock = FolderLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is in use by another process; wait for its end, or choose another --run_id"
        ) from None
    except NotImplementedError:
        rank_zero_print(f"  note: {folder} is on a file system without locks; start one process there at a time")
    except OSError as e:
        raise UserError(f"cannot lock the run folder {folder} ({e.strerror}); make it writable") from e
    else:
        _held[key] = lock


def release_folders() -> None:
    """Let other processes write the folders that this one wrote."""
    while _held:
        _held.popitem()[1].release(force=True)


def writes_run_folder(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """A command that holds the folder it writes until it ends, whichever way."""

    @wraps(main)
    def command(argv: list[str]) -> None:
        try:
            main(argv)
        finally:
            release_folders()

    return command


def new_run_id(requested: str | None, name: str, dataset: str, backbone: str, wandb: bool = False) -> str:
    """Name of a new run folder: as requested, or made from the run's name, its data, its backbone and the time.

    With Weights & Biases it is an id that the dashboard uses too: that of WANDB_RUN_ID, as in a sweep, or a new one.
    """
    given = os.environ.get("WANDB_RUN_ID") if wandb else None
    if given and requested not in (None, given):
        raise UserError(f"--run_id {requested} and WANDB_RUN_ID {given} name one run differently; remove one of them")
    if given:
        try:
            return folder_name(given)
        except ArgumentTypeError as e:
            raise UserError(f"WANDB_RUN_ID: {e}") from None
    if requested:
        return requested
    if wandb:
        return os.urandom(4).hex()
    short = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    return "-".join([short, dataset, backbone.replace("/", "_"), time.strftime("%Y%m%d-%H%M%S")])


def create_run_folder(output: str, run_id: str, automatic: bool = False) -> Path:
    """A folder for a new run, which this process holds; one that holds another run is refused.

    automatic: the name may change, so that two jobs of one second have a folder each.
    What a run left that ended before its first checkpoint is removed; logs of a dashboard that lie alone stay.
    """
    folder = Path(output) / run_id
    try:
        folder = _make_folder(folder, automatic)
        _refuse_another_run(folder)  # before the lock, which would leave a file there
        lock_folder(folder)
        _refuse_another_run(folder)
        for left in _content(folder) if _saved_nothing(folder) else ():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    except OSError as e:
        raise UserError(f"cannot create the run folder {folder} ({e.strerror}); choose another --output") from e
    return folder


def _make_folder(folder: Path, automatic: bool) -> Path:
    """The folder, made where it is missing; with automatic a new one: its name gets a number where it is taken."""
    if not automatic:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    names = itertools.chain([folder.name], (f"{folder.name}-{n}" for n in itertools.count(2)))
    for free in map(folder.with_name, names):
        with contextlib.suppress(FileExistsError):
            free.mkdir(parents=True)
            return free
    raise AssertionError("endless")


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != LOCK]


def _refuse_another_run(folder: Path) -> None:
    """Refuse a folder with anything in it, other than what a run leaves that ended before its first checkpoint."""
    if {path.name for path in _content(folder)} <= LOGS or _saved_nothing(folder):
        return
    quoted = shlex.quote(str(folder))
    raise UserError(f"{folder} already holds a run; resume it with --resume {quoted}, or choose another --run_id")


def _saved_nothing(folder: Path) -> bool:
    """Whether the folder holds a run, and only what a run writes before its first checkpoint."""
    content = _content(folder)
    return any(p.name == "args.json" for p in content) and all(_is_before_checkpoint(p) for p in content)


def discard_unsaved(folder: Path) -> None:
    """Remove what a run wrote that stops before its first step, so that its name is free again."""
    if _saved_nothing(folder):
        for left in _content(folder):
            if left.name not in LOGS and not left.is_dir():
                left.unlink()
        release_folders()
        with contextlib.suppress(OSError):  # the logs of a dashboard stay
            folder.rmdir()


def _is_before_checkpoint(path: Path) -> bool:
    return path.name in BEFORE_CHECKPOINT | LOGS or path.suffix == ".png" or path.match(".*.part")


@contextlib.contextmanager
def temporary_on_error(output: str, run_id: str, automatic: bool = False, ledger: str | None = None) -> Iterator[Path]:
    """The folder of a run, created by the first rank; removed after an error if nothing was written to it.

    ledger: directory that the run will be recorded in, if any.
    """
    check_ledger(ledger)
    folder = create_run_folder(output, run_id, automatic) if launched_rank() == 0 else Path(output) / run_id
    folder = Path(broadcast_str(str(folder)))
    try:
        yield folder
    except BaseException:
        if launched_rank() == 0:
            release_folders()
            with contextlib.suppress(OSError):  # it holds something, or is gone already
                folder.rmdir()
        raise


def open_run_folder(
    resumed: Path | None, args: Namespace, plan: Plan, argv: list[str], bad_images: Mapping[str, str]
) -> Path:
    """The folder of a pretraining run, with args.json where the run is new; only the first rank writes and locks.

    bad_images: path -> reason, of excluded files.
    """
    folder = _locked_run_folder(resumed, args, plan, argv)
    write_bad_images(folder, bad_images)
    rank_zero_print(f"  {'run folder':<16} {folder}")
    return folder


def _locked_run_folder(resumed: Path | None, args: Namespace, plan: Plan, argv: list[str]) -> Path:
    if launched_rank() == 0:
        check_ledger(args.record)
    if resumed:
        if launched_rank() == 0:
            lock_folder(resumed)
            record_extension(resumed, args, plan, argv)
        return resumed
    wandb = plan.logging.dashboard.wandb
    run_id = new_run_id(args.run_id, args.name or args.method, args.dataset, args.backbone, wandb)
    if launched_rank() != 0:
        return Path(args.output) / run_id
    folder = create_run_folder(args.output, run_id, automatic=not args.run_id)
    plan_values = dataclasses.asdict(plan)
    asked = {"run": uuid.uuid4().hex, "argv": argv, "flags": vars(args), "plan": plan_values} | provenance()
    try:
        create_json(folder / "args.json", asked)
    except FileExistsError:  # on a file system without locks
        raise UserError(f"{folder} is in use by another process; choose another --run_id") from None
    except OSError as e:
        raise UserError(f"cannot write to the run folder {folder} ({e.strerror}); choose another --output") from e
    return folder


def record_extension(folder: Path, args: Namespace, plan: Plan, argv: list[str]) -> None:
    """Let args.json hold the command and the plan of a run that is made longer, and under "extensions" those before."""
    path = folder / "args.json"
    recorded = read_json(path)
    before = entry(path, recorded, "plan.schedule.total_steps", int)
    if plan.schedule.total_steps > before:
        extension = {
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "total_steps": [before, plan.schedule.total_steps],
            "extend_schedule": args.extend_schedule,
            "argv_before": recorded["argv"],
        }
        extensions = [*recorded.get("extensions", []), extension]
        longer = {"argv": argv, "flags": vars(args), "plan": dataclasses.asdict(plan), "extensions": extensions}
        write_json(path, recorded | longer)


def write_bad_images(folder: Path, bad: Mapping[str, str]) -> None:
    """bad_images.txt: a line for each excluded file, with the reason behind a tab. Only the first rank writes."""
    if bad and launched_rank() == 0:
        write_text_atomically(folder / "bad_images.txt", "".join(f"{path}\t{why}\n" for path, why in bad.items()))


def write_summary(folder: Path, plan: Plan, seconds: float, ledger: str | None, splits: Mapping[str, Images]) -> None:
    """summary.json: the last value of every number that tells how the run went. Only the first rank writes.

    ledger: directory to record the run in, if any. splits: the images of the run, for its record.
    """
    if launched_rank() != 0:
        return
    rows = read_metrics(folder / "metrics.csv")
    knn = [f"knn_{k}" for k in plan.logging.knn_k]
    quality = [name for name in (rows[0] if rows else ()) if name.startswith("quality/")]
    names = ["loss", "probe_acc", "val_probe_acc", *knn, *quality, "images_per_second", "data_wait_fraction"]
    numbers = {name: value for name in names if (value := last_value(rows, name)) is not None}
    cost = {"seconds": round(seconds, 1), "peak_memory_bytes": peak_memory(plan.hardware.accelerator)}
    write_json(folder / "summary.json", numbers | cost)
    if ledger:
        record = {
            "kind": "pretraining",
            "argv": read_json(folder / "args.json")["argv"],
            "seed": plan.seed,
            "data": data_facts(plan.training_set.name, splits),
            "seconds": round(training_seconds(rows, plan), 1),
            "scores": with_definitions(numbers),
            "plan": dataclasses.asdict(plan),
        }
        write_record(Path(ledger), folder.name, record)


def training_seconds(rows: Sequence[Mapping[str, str]], plan: Plan) -> float:
    """Seconds that all epochs trained, interruptions and evaluations left out, from their images per second."""
    speeds = [(int(row["step"]), float(speed)) for row in rows if (speed := row.get("images_per_second"))]
    before = [-1, *(step for step, _ in speeds)]  # an epoch's row has its last step; --steps may cut the last epoch
    return sum(
        (step - start) * plan.batch.global_batch / speed for start, (step, speed) in zip(before, speeds, strict=False)
    )
