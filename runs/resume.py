"""Resume a run: find its command again, and refuse what would change its result."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

from runs.checkpoint import LAST, PREVIOUS
from runs.folder import AUTO
from utils.errors import UserError
from utils.files import OUTPUT, entry, read_json, typed_path
from utils.names import shown
from utils.plan import BackboneConfig, BatchConfig, Plan

MAY_CHANGE = {  # flags that cannot change the result of a run
    "resume", "accelerator", "gpus", "num_nodes", "num_workers", "batch_size", "data_folder", "cache", "wandb",
    "entity", "offline", "log_every", "knn_every", "checkpoint_every", "keep_every", "deterministic", "on_alarm",
    "tensorboard",
}  # fmt: skip
LENGTH = {"epochs", "steps", "extend_schedule"}  # flags that may change together, to extend a run
PLACE = {"output", "run_id"}  # with --resume auto they name the run to resume


def pop_resume_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    """(run folder of --resume or None for a new run, the other arguments).

    --resume auto stays in the arguments: its folder is that of --run_id, and the run is new until it has a checkpoint.
    """
    resume = _value(argv, "--resume")
    if resume == AUTO:
        run_id = _value(argv, "--run_id")
        if not run_id:
            raise UserError("--resume auto needs --run_id: it starts the run of that name, or goes on with it; add it")
        folder = typed_path(Path(_value(argv, "--output") or OUTPUT) / run_id)
        return folder if has_checkpoint(folder) else None, argv
    if resume is not None:
        return typed_path(resume), _without(argv, "--resume")
    if _value(argv, "--extend_schedule"):
        raise UserError("--extend_schedule has no effect without --resume; add that, or remove --extend_schedule")
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


def _without(argv: list[str], flag: str) -> list[str]:
    """argv without a flag and its value."""
    kept, skip = [], False
    for argument in argv:
        if not skip and argument != flag and not argument.startswith(f"{flag}="):
            kept.append(argument)
        skip = argument == flag and not skip
    return kept


@dataclass(frozen=True)
class RecordedRun:
    """What args.json says of a run: its command, a hash of its images, its lengths in steps (those of extensions).

    teacher: the frozen network that its method learns from.
    """

    argv: list[str]
    fingerprint: str
    global_batch: int
    total_steps: int
    warmup_steps: int
    schedule_steps: int | None
    teacher: BackboneConfig | None = None


def read_run(folder: Path) -> RecordedRun:
    """Read and check the args.json of a run; a damaged one is a UserError that names it and what is wrong."""
    path = folder / "args.json"
    content = read_json(path)
    argv = entry(path, content, "argv", list)
    batch = [entry(path, content, f"plan.batch.{name}", int) for name in ("batch_size", "processes", "accumulate")]
    total, warmup = (entry(path, content, f"plan.schedule.{name}", int) for name in ("total_steps", "warmup_steps"))
    schedule_steps = content["plan"]["schedule"].get("schedule_steps")  # older runs have none
    if schedule_steps is not None:
        schedule_steps = entry(path, content, "plan.schedule.schedule_steps", int)
    fingerprint = entry(path, content, "plan.training_set.fingerprint", str)
    teacher = None
    if content["plan"].get("teacher") is not None:
        name, stem = (entry(path, content, f"plan.teacher.{key}", str) for key in ("name", "stem"))
        teacher = BackboneConfig(name, stem)
    if not all(isinstance(word, str) for word in argv) or {"-h", "--help"} & {*argv}:
        raise UserError(f"{path} is damaged: argv is not the command of a run; restore it from a backup")
    if min(*batch, total - warmup, warmup + 1) < 1 or not 1 <= (schedule_steps or total) <= total:
        raise UserError(f"{path} is damaged: the plan has impossible lengths; restore it from a backup")
    if not isinstance(content.get("extensions", []), list):
        raise UserError(f"{path} is damaged: extensions is no list; restore it from a backup")
    return RecordedRun(argv, fingerprint, BatchConfig(*batch).global_batch, total, warmup, schedule_steps, teacher)


def resume_argv(folder: Path, argv: list[str]) -> tuple[RecordedRun, list[str]]:
    """(the run as its args.json has it, arguments to resume it with).

    New flags are appended to the old arguments, where --epochs takes the place of --steps; a command that names its
    data set again, or with --resume auto, stands alone.
    """
    if not has_checkpoint(folder) and (folder / "args.json").exists():
        raise UserError(
            f"--resume {shown(folder)}: the run has no checkpoint yet; if it ended before its first one, start it "
            f"again with its own command and --run_id {shown(folder.name)}"
        )
    if not has_checkpoint(folder):
        raise UserError(f"--resume {shown(folder)}: it has no last.ckpt; name the folder of a pretraining run")
    recorded = read_run(folder)
    if argv and (not argv[0].startswith("-") or _value(argv, "--resume") == AUTO):
        return recorded, argv
    before = recorded.argv
    if _value(argv, "--epochs") or _value(argv, "--steps"):  # another length, which another extension must explain
        before = _without(before, "--extend_schedule")
        before = before if _value(argv, "--steps") else _without(before, "--steps")
    return recorded, [*before, *argv]


def continued_plan(recorded: RecordedRun, started: Namespace, resumed: Namespace, plan: Plan) -> Plan:
    """The plan to go on with, which may be longer than the recorded one.

    started, resumed: flags of the recorded command, and of the present one. plan: as the present flags resolve.
    Everything that would change the result is refused in one line: flags, images and global batch together.
    """
    changed, rule = _changed_flags(started, resumed), getattr(resumed, "extend_schedule", None)
    length = {name for name, _, _ in changed} & LENGTH
    advice = "undo that, or start a new run"
    if length == {"extend_schedule"} and rule is None:  # the command of a run that was extended, without that flag
        changed, length = [flag for flag in changed if flag[0] not in LENGTH], set()
    elif length == {"extend_schedule"}:
        advice += "; --extend_schedule has no effect without a longer --epochs or --steps"
    elif length and rule is None:
        advice += "; to train longer, add --extend_schedule stretch or constant, see --help"
    else:
        changed = [flag for flag in changed if flag[0] not in LENGTH]
    problems = _differences(recorded, changed, plan)
    longer = plan.schedule.total_steps - recorded.total_steps
    if not problems and length and longer <= 0:
        problems = [f"{plan.schedule.total_steps} steps are not more than the run's {recorded.total_steps}"]
        advice = "a run can be extended and not shortened: raise --epochs or --steps"
    if problems:
        raise UserError(f"{'; '.join(problems)}; a resumed run continues exactly as it began: {advice}")
    if longer and not length:
        raise UserError(f"the run's args.json is damaged: its plan has {recorded.total_steps} steps, its command gives "
                        f"{plan.schedule.total_steps}; restore it from a backup")  # fmt: skip
    steps = recorded.schedule_steps
    if longer:
        steps = None if rule == "stretch" else steps or recorded.total_steps
    schedule = replace(plan.schedule, warmup_steps=recorded.warmup_steps, schedule_steps=steps)
    return replace(plan, schedule=schedule, teacher=recorded.teacher)


def _changed_flags(started: Namespace, resumed: Namespace) -> list[tuple[str, Any, Any]]:
    """(name, value now, value before) of the flags that may not change."""
    free = MAY_CHANGE | (PLACE if getattr(resumed, "resume", None) == AUTO else set())
    pairs = ((name, getattr(resumed, name, None), before) for name, before in vars(started).items() if name not in free)
    return [(name, now, before) for name, now, before in pairs if now != before]


def _differences(recorded: RecordedRun, changed: list[tuple[str, Any, Any]], plan: Plan) -> list[str]:
    """What differs from the recorded run, a phrase for each kind."""
    problems = []
    if changed:
        (name, now, before), *others = changed
        problems.append(
            f"--{name} {now} differs from the run's {before}" + "".join(f", --{n} {v} from {w}" for n, v, w in others)
        )
    if plan.training_set.fingerprint != recorded.fingerprint:
        problems.append("the training set changed since the run started (other files, order or labels): restore it")
    if plan.batch.global_batch != recorded.global_batch:
        problems.append(
            f"a global batch of {plan.batch.global_batch} differs from the run's {recorded.global_batch}: choose "
            f"--batch_size so that batch_size x processes stays the same"
        )
    return problems


class LearningRateOfPlan(Callback):
    """Give each parameter group the rate of the plan at the first step; a checkpoint has that of a shorter run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            assert isinstance(scheduler, LambdaLR)
            rates = [b * f(scheduler.last_epoch) for b, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
