"""Resume a run: find its command again, and refuse what would change its result."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json
from utils.plan import BatchConfig, Plan

MAY_CHANGE = {  # flags that cannot change the result of a run
    "resume", "accelerator", "gpus", "num_nodes", "num_workers", "batch_size", "data_folder", "cache", "wandb",
    "entity", "offline",
}  # fmt: skip


def pop_resume_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    """(run folder of --resume or None, the other arguments)."""
    for i, argument in enumerate(argv):
        if argument == "--resume" and i + 1 < len(argv):
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2]), argv[:i] + argv[i + 1 :]
    return None, argv


def resume_argv(folder: Path, argv: list[str]) -> tuple[list[str], list[str]]:
    """(arguments that the run was started with, arguments to resume it with).

    New flags are appended to the old arguments; a command that names its data set again stands alone.
    """
    saved = any((folder / name).exists() for name in ("last.ckpt", "previous.ckpt"))
    if not saved and (folder / "args.json").exists():
        raise UserError(
            f"--resume {folder}: the run has no checkpoint yet; if it ended before its first one, start it again with "
            f"its own command and --run_id {folder.name}"
        )
    if not saved:
        raise UserError(f"--resume {folder}: it has no last.ckpt; name the folder of a pretraining run")
    started: list[str] = read_json(folder / "args.json")["argv"]
    retyped = bool(argv) and not argv[0].startswith("-")
    return started, argv if retyped else started + argv


def check_same_flags(started: Namespace, resumed: Namespace) -> None:
    """Refuse a flag that would change the result of the resumed run."""
    for name, before in vars(started).items():
        now = getattr(resumed, name, None)
        if name not in MAY_CHANGE and now != before:
            raise UserError(
                f"--{name} {now} differs from the run's {before}; a resumed run continues exactly as it began: "
                f"remove the flag, or start a new run"
            )


def check_same_data(folder: Path, plan: Plan) -> None:
    """Refuse other training images, or another global batch, than those that the run began with."""
    started: dict[str, Any] = read_json(folder / "args.json")["plan"]
    if started["training_set"]["fingerprint"] != plan.training_set.fingerprint:
        raise UserError(
            "the training set changed since the run started (other files, order or labels); restore it, or start a "
            "new run"
        )
    before = BatchConfig(**started["batch"]).global_batch
    if before != plan.batch.global_batch:
        raise UserError(
            f"a global batch of {plan.batch.global_batch} differs from the run's {before}; "
            f"change --batch_size so that batch_size x processes stays the same"
        )
