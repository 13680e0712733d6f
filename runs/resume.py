"""Resume a run: find its command again, and refuse what would change its result."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from runs.checkpoint import LAST, PREVIOUS
from runs.folder import AUTO
from utils.errors import UserError
from utils.files import OUTPUT, read_json
from utils.plan import BatchConfig, Plan

MAY_CHANGE = {  # flags that cannot change the result of a run
    "resume", "accelerator", "gpus", "num_nodes", "num_workers", "batch_size", "data_folder", "cache", "wandb",
    "entity", "offline", "log_every", "knn_every", "on_alarm",
}  # fmt: skip
PLACE = {"output", "run_id"}  # with --resume auto they name the run to go on with


def pop_resume_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    """(run folder of --resume or None for a new run, the other arguments).

    --resume auto stays in the arguments: its folder is that of --run_id, and the run is new until it has a checkpoint.
    """
    resume = _value(argv, "--resume")
    if resume == AUTO:
        run_id = _value(argv, "--run_id")
        if not run_id:
            raise UserError("--resume auto needs --run_id: it starts the run of that name, or goes on with it; add it")
        folder = Path(_value(argv, "--output") or OUTPUT) / run_id
        return folder if has_checkpoint(folder) else None, argv
    for i, argument in enumerate(argv):
        if argument == "--resume" and i + 1 < len(argv):
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2]), argv[:i] + argv[i + 1 :]
    return None, argv


def has_checkpoint(folder: Path) -> bool:
    """Whether a run left a checkpoint in its folder, the last one or the one before."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


def _value(argv: list[str], flag: str) -> str | None:
    """What argv gives the flag, the last time where it names it twice."""
    value = None
    for i, argument in enumerate(argv):
        if argument == flag and i + 1 < len(argv):
            value = argv[i + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def resume_argv(folder: Path, argv: list[str]) -> tuple[list[str], list[str]]:
    """(arguments that the run was started with, arguments to resume it with).

    New flags are appended to the old arguments; a command that names its data set again, or with --resume auto, stands
    alone.
    """
    if not has_checkpoint(folder) and (folder / "args.json").exists():
        raise UserError(
            f"--resume {folder}: the run has no checkpoint yet; if it ended before its first one, start it again with "
            f"its own command and --run_id {folder.name}"
        )
    if not has_checkpoint(folder):
        raise UserError(f"--resume {folder}: it has no last.ckpt; name the folder of a pretraining run")
    started: list[str] = read_json(folder / "args.json")["argv"]
    alone = bool(argv) and (not argv[0].startswith("-") or _value(argv, "--resume") == AUTO)
    return started, argv if alone else started + argv


def check_same_flags(started: Namespace, resumed: Namespace) -> None:
    """Refuse flags that would change the result of the resumed run, all of them in one line."""
    free = MAY_CHANGE | (PLACE if getattr(resumed, "resume", None) == AUTO else set())
    pairs = ((name, getattr(resumed, name, None), before) for name, before in vars(started).items() if name not in free)
    changed = [(name, now, before) for name, now, before in pairs if now != before]
    if changed:
        (name, now, before), *others = changed
        more = "".join(f", --{name} {now} from {before}" for name, now, before in others)
        raise UserError(
            f"--{name} {now} differs from the run's {before}{more}; a resumed run continues exactly as it began: "
            f"remove the flag{'s' if others else ''}, or start a new run"
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
