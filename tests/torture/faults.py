"""The faults of the table, each with the promise that must hold. A new promise is a new entry of FAULTS."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.torture.hooks import AWAY
from tests.torture.launch import Hooks

EPOCH, STEPS = 5, 15  # optimizer steps of an epoch and of the run
IMAGE = "images/train/c1/3.png"  # relative to the folder of a row
KILLED, AT_A_BYTE = -signal.SIGKILL, -signal.SIGXFSZ
ENDED = (2, -signal.SIGTERM, 128 + signal.SIGTERM)  # by its launcher, unless it failed by itself before


@dataclass(frozen=True)
class Fault:
    """One way to lose a run, and what was promised for it.

    hooks: what happens within the first command, on the process `rank` (None: on all). status: how that command may
    end, 0 for to the end; others: the same for its other processes, where it differs. says: a pattern of what it
    prints. end_together: when one process dies, all do, as a machine does.
    reader_leaves_after: the step after which nobody reads the output any more. second_writer: another process wants the
    folder meanwhile. real: in a new Python rather than in a fork; slower.
    launcher_ends: the process fails before it has met the others, and their launcher (torchrun, srun) ends them.
    damage: what happens to the run folder between the two commands. then: "resumed" to the end, or "refused" with one
    line until `repair` put things right. then_says: a pattern of what the second command prints.
    most_lost: optimizer steps that may be trained twice. same_metrics: whether metrics.csv must be equal too.
    flags, pipelines, processes: what the run needs. own_images: the fault changes the images.
    """

    name: str
    hooks: Hooks = ()
    rank: int | None = 0
    status: tuple[int, ...] = (0,)
    others: tuple[int, ...] | None = None
    says: str = ""
    end_together: bool = False
    launcher_ends: bool = False
    reader_leaves_after: int | None = None
    second_writer: bool = False
    damage: Callable[[Path], None] | None = None
    then: str = "resumed"
    then_says: str = ""
    repair: Callable[[Path], None] | None = None
    most_lost: int = 0
    flags: tuple[str, ...] = ()
    own_images: bool = False
    pipelines: tuple[str, ...] = ("memory", "stream", "torchvision", "dali")
    processes: tuple[int, ...] = (1, 2)
    same_metrics: bool = True
    real: bool = False


# Damage to a run folder -----------------------------------------------------------------------------------------------


def flip_bit(name: str, place: float = 0.5) -> Callable[[Path], None]:
    """Flip one bit of a file, at a share of its length."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 4
        (folder / name).write_bytes(content)

    return damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    """Keep only the first part of a file."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def remove(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def write(name: str, content: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(content)

    return damage


def change_settings(key: str) -> Callable[[Path], None]:
    """Take one key out of args.json."""

    def damage(folder: Path) -> None:
        settings = json.loads((folder / "args.json").read_text())
        del settings[key]
        (folder / "args.json").write_text(json.dumps(settings))

    return damage


def restore_image(folder: Path) -> None:
    """Put back the image that a hook took away."""
    image = folder.parent / IMAGE
    image.with_name(image.name + AWAY).replace(image)


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


# When it happens ------------------------------------------------------------------------------------------------------


def after(step: int, action: str, **arguments: object) -> tuple[str, dict]:
    """A hook that acts when a step has ended; step 0: before the first one."""
    return action, {"step": step, **arguments}


def signal_at(step: int, number: int) -> tuple[str, dict]:
    return after(step, "send", number=int(number))


def at_rename(name: str, occurrence: int, number: int = signal.SIGKILL) -> tuple[str, dict]:
    """A signal when a whole new file is about to take the place of `name`."""
    return "send_at_rename", {"number": int(number), "name": name, "occurrence": occurrence}


LAST, PREVIOUS, BACKBONE = "last.ckpt", "previous.ckpt", "backbone.safetensors"
BIG, SOME = 2_000_000, 300_000  # bytes of a file that still fit: within last.ckpt, and within backbone.safetensors
STOPPED = "Resume with"
CHANGED = "training set changed|has the clusters of 60 images"


def killed(name: str, *hooks: tuple[str, dict], lost: int = EPOCH, status: int = KILLED, **more: object) -> Fault:
    """A run that dies without a warning, with its machine; its other process may see that first, and end itself."""
    others = (status, KILLED, 1, 2)
    return Fault(name, hooks, status=(status,), others=others, end_together=True, most_lost=lost, **more)  # type: ignore[arg-type]


def stopped(name: str, number: signal.Signals, step: int, says: str = STOPPED, **more: object) -> Fault:
    """A run that is asked to stop."""
    return Fault(name, (signal_at(step, number),), status=(128 + number,), says=says, **more)  # type: ignore[arg-type]


def damaged(name: str, damage: Callable[[Path], None], then_says: str = "", **more: object) -> Fault:
    """A run that was stopped within its second epoch, and whose files are then damaged."""
    hooks = (signal_at(8, signal.SIGTERM),)
    return Fault(name, hooks, status=(143,), damage=damage, then_says=then_says, **more)  # type: ignore[arg-type]


def refused(name: str, damage: Callable[[Path], None], then_says: str, **more: object) -> Fault:
    """The same, where one line must refuse to go on."""
    return damaged(name, damage, then_says, then="refused", **more)


def full(name: str, size: int, first: int, last: int | None, *more_hooks: tuple[str, dict], **more: object) -> Fault:
    """A disk that is full beyond `size` bytes of a file, after the steps `first` to `last`, or to the end."""
    hooks = [after(first, "limit_files", size=size)]
    hooks += [after(last, "limit_files", size=None)] if last else []
    return Fault(name, (*hooks, *more_hooks), **more)  # type: ignore[arg-type]


# The table ------------------------------------------------------------------------------------------------------------

FAULTS: tuple[Fault, ...] = (
    Fault("nothing"),
    # kill -9, power cuts
    killed("kill -9 before the first step", signal_at(0, signal.SIGKILL), lost=0),
    killed("kill -9 in the first epoch", signal_at(3, signal.SIGKILL)),
    killed("kill -9 in the last epoch", signal_at(13, signal.SIGKILL), real=True, processes=(1,)),
    killed("kill -9 after the last step of an epoch", signal_at(10, signal.SIGKILL)),
    killed("killed at byte 4,096 of the first checkpoint", after(3, "limit_files", size=4096, deadly=True),
           status=AT_A_BYTE),
    killed("killed at byte 2,000,000 of the second checkpoint", after(8, "limit_files", size=BIG, deadly=True),
           status=AT_A_BYTE),
    killed("kill -9 before previous.ckpt is replaced", at_rename(PREVIOUS, 2)),
    killed("kill -9 between previous.ckpt and last.ckpt", at_rename(LAST, 2)),
    # The numbers of an epoch that is not logged before its checkpoint is written are lost with the process.
    killed("kill -9 between last.ckpt and backbone.safetensors", at_rename(BACKBONE, 2), same_metrics=False),
    killed("kill -9 before the last backbone.safetensors", at_rename(BACKBONE, 3), same_metrics=False),
    killed("kill -9 before summary.json", at_rename("summary.json", 1), lost=0),
    Fault("kill -9 of the first of two processes", (signal_at(7, signal.SIGKILL),), rank=0, status=(KILLED,),
          others=(1, 2), processes=(2,), most_lost=EPOCH),
    Fault("kill -9 of the second of two processes", (signal_at(7, signal.SIGKILL),), rank=1, status=(KILLED,),
          others=(1, 2), processes=(2,), most_lost=EPOCH),
    # signals
    stopped("SIGTERM at a step", signal.SIGTERM, 8, real=True, processes=(1,)),
    stopped("SIGINT at a step", signal.SIGINT, 9),
    stopped("SIGHUP at a step", signal.SIGHUP, 2),
    stopped("SIGUSR1 at a step", signal.SIGUSR1, 14),
    stopped("SIGTERM before the first step", signal.SIGTERM, 0, "before the first step"),
    stopped("SIGUSR1 after the last step of an epoch", signal.SIGUSR1, 10),
    stopped("SIGTERM to the second of two processes", signal.SIGTERM, 8, rank=1, processes=(2,)),
    Fault("SIGUSR1 and then SIGTERM", (signal_at(7, signal.SIGUSR1), signal_at(7, signal.SIGTERM)), status=(138,),
          says=STOPPED),
    Fault("SIGTERM while a checkpoint is written", (at_rename(LAST, 1, signal.SIGTERM),), status=(143,), says=STOPPED),
    Fault("SIGTERM while the last checkpoint is written", (at_rename(LAST, 3, signal.SIGTERM),), status=(0, 143)),
    Fault("SIGSTOP, and SIGCONT a second later", (after(7, "stop_for", seconds=1),)),
    # full disks
    full("disk full at one checkpoint", BIG, 8, 11, says="cannot write .*last.ckpt"),
    full("disk full at one backbone.safetensors", SOME, 8, 11, says="cannot write"),
    full("disk full at the last checkpoint", BIG, 13, None, status=(2,), says="the end of the run is not saved",
         most_lost=EPOCH),
    full("disk full at a signal", BIG, 7, None, signal_at(8, signal.SIGTERM), status=(2, 143), says="cannot write",
         most_lost=EPOCH),
    full("disk full for every file, for one epoch", 0, 6, 11, same_metrics=False),
    full("disk full for every file, to the end", 0, 6, None, status=(2,), most_lost=2 * EPOCH, same_metrics=False),
    Fault("disk full before the run folder", (("full_from_the_start", {"size": 0}),), status=(2,), others=ENDED,
          launcher_ends=True, says="error: "),
    # damaged files
    damaged("a flipped bit in last.ckpt", flip_bit(LAST), "last.ckpt is damaged", most_lost=EPOCH),
    damaged("a flipped bit at the end of last.ckpt", flip_bit(LAST, 1.0), "last.ckpt is damaged", most_lost=EPOCH),
    damaged("last.ckpt cut to a half", cut(LAST, 0.5), "last.ckpt is damaged", most_lost=EPOCH),
    damaged("last.ckpt empty", cut(LAST, 0), "last.ckpt is damaged", most_lost=EPOCH),
    damaged("last.ckpt missing", remove(LAST), "last.ckpt is missing", most_lost=EPOCH),
    damaged("previous.ckpt damaged", flip_bit(PREVIOUS)),
    damaged("backbone.safetensors damaged", flip_bit(BACKBONE, 0.01)),
    damaged("backbone.safetensors missing", remove(BACKBONE)),
    damaged("metrics.csv cut within a row", cut("metrics.csv", 0.9), same_metrics=False),
    damaged("metrics.csv missing", remove("metrics.csv"), same_metrics=False),
    refused("metrics.csv is binary", lambda folder: (folder / "metrics.csv").write_bytes(b"\x80\xff\x00\n,," * 9),
            "metrics.csv"),
    refused("both checkpoints damaged", both(flip_bit(LAST), flip_bit(PREVIOUS)), "previous.ckpt is damaged"),
    refused("args.json cut to a half", cut("args.json", 0.5), "args.json"),
    refused("args.json empty", cut("args.json", 0), "args.json"),
    refused("args.json missing", remove("args.json"), "args.json"),
    refused("args.json is a list", write("args.json", "[]\n"), "args.json"),
    refused("args.json without its command", change_settings("argv"), "args.json"),
    refused("args.json without its plan", change_settings("plan"), "args.json"),
    damaged("args.json of a version that gave runs no identity", change_settings("run")),
    # NaN
    Fault("NaN at a step", (("nan_at_step", {"step": 8}),), status=(2,), says="not finite at step 8", most_lost=EPOCH),
    Fault("NaN on the second of two processes", (("nan_at_step", {"step": 8}),), rank=1, status=(2,),
          says="not finite at step 8", processes=(2,), most_lost=EPOCH),
    Fault("NaN between logged steps", (("nan_at_step", {"step": 8}),), status=(2,), says="not finite at step 8",
          flags=("--log_every", "1000"), most_lost=EPOCH),
    # what a run depends on
    Fault("a second writer in the same folder", second_writer=True),
    Fault("the reader of stdout goes away", reader_leaves_after=6, real=True, processes=(1,)),
    Fault("the reader of stdout of two processes goes away", reader_leaves_after=6, processes=(2,)),
    Fault("a data loader worker killed", (after(7, "kill_a_worker"),), status=(1,), says="error: .*worker",
          most_lost=EPOCH, pipelines=("torchvision",), processes=(1,)),
    Fault("W&B client killed", (after(4, "kill_the_client"),), flags=("--wandb", "--offline"),
          says="Weights & Biases is off from here", processes=(1,)),
    Fault("an image vanishes during the run", (after(6, "remove_image", path=IMAGE),), status=(2,), says="error: .*png",
          then="refused", then_says=CHANGED, repair=restore_image, most_lost=EPOCH, own_images=True, processes=(1,)),
    Fault("an image is replaced during the run", (after(6, "replace_image", path=IMAGE),), status=(2,),
          says="error: .*png", then="refused", then_says=CHANGED, repair=restore_image, most_lost=EPOCH,
          own_images=True, processes=(1,)),
)  # fmt: skip
