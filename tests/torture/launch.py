"""Start the application many times: forked from a process that has imported it, or as processes of their own."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.commands import ROOT, environment
from tests.helpers.processes import CONTEXT, start_forkserver
from tests.torture import child

Hooks = Sequence[tuple[str, dict[str, Any]]]
LAUNCHER_POLL = 0.1  # seconds in which torchrun notices that a process failed
PATIENCE = 120.0  # seconds after which a command that should have ended hangs

_numbers = itertools.count()
# multiprocessing polls every child when one starts; of two threads that poll the same one, the later reads 255.
_polling = threading.Lock()


class Pipe:
    """A pipe of a child process whose text is gathered as it comes, so that the child never waits for a reader."""

    def __init__(self) -> None:
        self.reader, self.writer = CONTEXT.Pipe(duplex=False)
        self.text = ""
        self._closing = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            descriptor = self.reader.fileno()
            while not self._closing and (block := os.read(descriptor, 65536)):
                self.text += block.decode(errors="replace")
        self.reader.close()

    def close_reader_after_more(self) -> None:
        """Stop reading: what the child writes after its next write meets a pipe without a reader."""
        self._closing = True

    def rest(self, seconds: float = 1.0) -> str:
        """What came, waiting a little for what is still in the pipe."""
        self._thread.join(seconds)
        return self.text


class Rank:
    """One process of a command."""

    def __init__(self, job: dict[str, Any], folder: Path, real: bool):
        self.output, self.events = Pipe(), Pipe()
        self._status: int | None = None
        self._forked: Any = None
        if real:
            path = folder / f"job-{next(_numbers)}.json"
            path.write_text(json.dumps(job | {"env": None}))
            events = self.events.writer.fileno()
            argv = [sys.executable, "-m", "tests.torture.child", str(path), str(events)]
            out = self.output.writer.fileno()
            self._own: Any = subprocess.Popen(argv, cwd=ROOT, env=job["env"], stdin=subprocess.DEVNULL,
                                              stdout=out, stderr=out, pass_fds=[events])  # fmt: skip
            self.pid: int = self._own.pid
        else:
            arguments = (job, self.output.writer, self.events.writer)
            start_forkserver()
            self._forked = CONTEXT.Process(target=child.become_the_application, args=arguments)
            with _polling:
                self._forked.start()
            self.pid = self._forked.pid
        self.output.writer.close()
        self.events.writer.close()

    def status(self) -> int | None:
        """The exit status, negative for a signal, or None while the process runs."""
        if self._forked is None:
            return self._own.poll()
        with _polling:
            return self._forked.exitcode

    def send(self, number: int) -> None:
        if self.status() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end_what_is_left(self) -> None:
        """kill -9 the process and those that it started."""
        self.send(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class Command:
    """A command of the application: one process, or several that train together as torchrun would start them.

    hooks: what goes wrong, on the process `rank`, or on all with None. real: processes of their own, not forks.
    main: "main_contrastive" or "main_linear".
    """

    def __init__(
        self, argv: Sequence[str], folder: Path, processes: int = 1, hooks: Hooks = (), rank: int | None = 0,
        real: bool = False, main: str = "main_contrastive",
    ):  # fmt: skip
        self.began = time.monotonic()
        job = {"main": main, "argv": list(argv)}
        self.ranks = [
            Rank(job | {"env": env, "hooks": list(hooks) if rank in (None, n) else []}, folder, real)
            for n, env in enumerate(_environment(processes))
        ]

    def steps(self) -> list[int]:
        """The optimizer steps that it finished so far."""
        return [step for line in self.ranks[0].events.text.split() if (step := int(line))]

    def wait_until_started(self) -> None:
        """Wait until every process is the application, with the signal handlers of a new process."""
        while any(not r.events.text and r.status() is None for r in self.ranks):
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> bool:
        """Wait until a step is finished; whether it came before the command ended."""
        deadline = time.monotonic() + PATIENCE
        while step not in self.steps() and time.monotonic() < deadline:
            if self.ranks[0].status() is not None:
                return step in self.steps()
            time.sleep(0.01)
        return step in self.steps()

    def wait(self, end_together: bool = False, launcher_ends: bool = False, patience: float = PATIENCE) -> "Ended":
        """Wait for the end; a process that hangs is killed. end_together: as a machine dies, all at once.

        launcher_ends: the first process that fails lets the launcher ask the others to end, as torchrun does.
        """
        deadline, asked = time.monotonic() + patience, False
        while (running := [r for r in self.ranks if r.status() is None]) and time.monotonic() < deadline:
            if end_together and len(running) < len(self.ranks):
                for each in running:
                    each.send(signal.SIGKILL)
            if launcher_ends and not asked and any(r.status() for r in self.ranks):
                time.sleep(LAUNCHER_POLL)
                asked = True
                for each in self.ranks:
                    each.send(signal.SIGTERM)
            time.sleep(0.01)
        hung = [n for n, r in enumerate(self.ranks) if r.status() is None]
        for n in hung:
            self.ranks[n].send(signal.SIGKILL)
        while any(r.status() is None for r in self.ranks):
            time.sleep(0.01)
        statuses = [r.status() or 0 for r in self.ranks]
        printed = [r.output.rest() for r in self.ranks]
        for each in self.ranks:
            each.events.rest()
        return Ended(statuses, printed, hung, self.steps(), time.monotonic() - self.began)

    def end_what_is_left(self) -> None:
        for each in self.ranks:
            each.end_what_is_left()


class Ended:
    """How a command ended: per process the exit status and what it printed; the processes that hung."""

    def __init__(self, statuses: list[int], printed: list[str], hung: list[int], steps: list[int], seconds: float):
        self.statuses, self.printed, self.hung, self.steps, self.seconds = statuses, printed, hung, steps, seconds

    @property
    def text(self) -> str:
        return "\n".join(self.printed)


def run_to_end(argv: Sequence[str], folder: Path, *args: Any, **options: Any) -> Ended:
    """How a command ends that is left alone. args, options: those of `Command`."""
    command = Command(argv, folder, *args, **options)
    try:
        return command.wait()
    finally:
        command.end_what_is_left()


def _environment(processes: int) -> list[dict[str, str]]:
    """All variables of each process: those of this one, and of several processes what torchrun adds."""
    if processes == 1:
        return [environment()]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = str(processes)
    group = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip
    return [environment() | group | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]
