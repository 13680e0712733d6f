"""What goes wrong within a run, at a known moment: signals, full disks, NaN, lost images, workers and clients."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

import main_contrastive
from evaluation import pictures
from methods.base import Method

Action = Callable[[], None]
AWAY = ".away"  # added to the name of an image that is taken away
WAIT = 60.0  # seconds that a paused run waits for its harness


class AtSteps(Callback):
    """Report each finished optimizer step, and act after given ones, before the application's own callbacks."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.actions: list[tuple[int, Action]] = []
        self._reported = -1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._act(0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != self._reported:
            self._reported = trainer.global_step
            if trainer.is_global_zero:
                os.write(self.events, f"{self._reported}\n".encode())
            self._act(self._reported)

    def _act(self, step: int) -> None:
        for at, action in self.actions:
            if at == step:
                action()


def install(asked: Iterable[tuple[str, dict[str, Any]]], events: int) -> None:
    """Set the hooks `asked` for: names of functions below with their arguments. Pictures are left out, they take long.

    events: a file descriptor to which the first process writes the number of each finished step.
    """
    at_steps = AtSteps(events)
    original = main_contrastive.training_callbacks
    main_contrastive.training_callbacks = lambda *args: [at_steps, *original(*args)]
    for name in ("curves", "neighbours", "embedding"):
        setattr(pictures, name, lambda path, *args: Image.new("RGB", (4, 4)).save(path))
    for name, arguments in asked:
        if name in AT_STEP:
            step = arguments.pop("step")
            at_steps.actions.append((step, _bound(AT_STEP[name], arguments)))
        else:
            WHOLE_RUN[name](**arguments)


def _bound(action: Callable[..., None], arguments: dict[str, Any]) -> Action:
    return lambda: action(**arguments)


# After a step ---------------------------------------------------------------------------------------------------------


def send(number: int) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)


def stop_for(seconds: float) -> None:
    """Stop this process (SIGSTOP) and continue it some seconds later."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def limit_files(size: int | None, deadly: bool = False) -> None:
    """Let every write beyond `size` bytes of a file fail, as on a full disk; None: there is room again.

    deadly: the kernel ends the process (SIGXFSZ) at that byte instead, without any clean-up.
    """
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if deadly:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def wait_for(path: str) -> None:
    """Pause until a file is there."""
    deadline = time.monotonic() + WAIT
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def kill_a_worker() -> None:
    """kill -9 one of the worker processes that load data."""
    workers = [process for process in multiprocessing.active_children() if process.pid]
    assert workers, "no worker process to kill"
    os.kill(workers[0].pid or 0, signal.SIGKILL)


def kill_the_client() -> None:
    """kill -9 the process of the Weights & Biases client."""
    listing = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    clients = [int(line.split()[0]) for line in listing.stdout.splitlines() if "wandb-core" in line]
    assert clients, f"no client to kill among: {listing.stdout}"
    for client in clients:
        os.kill(client, signal.SIGKILL)


def remove_image(path: str) -> None:
    """Move an image away, to a name beside it that a scan for images passes over."""
    os.rename(path, path + AWAY)


def replace_image(path: str) -> None:
    """Put another image, a valid file of another length, in the place of one."""
    remove_image(path)
    Image.new("RGB", (24, 18), (200, 30, 90)).save(path)


AT_STEP: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (send, stop_for, limit_files, wait_for, kill_a_worker, kill_the_client, remove_image, replace_image)
}


# From the start -------------------------------------------------------------------------------------------------------


def send_at_rename(number: int, name: str, occurrence: int = 1) -> None:
    """Send a signal to this process when the file `name` is about to be replaced for the n-th time."""
    seen = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "os.rename" and os.path.basename(os.fsdecode(arguments[1])) == name:
            seen += 1
            if seen == occurrence:
                os.kill(os.getpid(), number)

    sys.addaudithook(audit)


def nan_at_step(step: int) -> None:
    """Make the loss NaN in one step."""
    whole = Method.training_step

    def training_step(self: Method, batch: Any, batch_idx: int) -> Any:
        loss = whole(self, batch, batch_idx)
        return loss * float("nan") if self.trainer.global_step + 1 == step else loss

    Method.training_step = training_step  # type: ignore[method-assign]


def full_from_the_start(size: int) -> None:
    """A disk that is full before the run folder is made."""
    limit_files(size)


WHOLE_RUN: dict[str, Callable[..., None]] = {f.__name__: f for f in (send_at_rename, nan_at_step, full_from_the_start)}
