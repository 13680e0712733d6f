"""The two sides of a row, Lookalike and the baseline, as processes that work in turns.

A side is a function that takes the `Settings`, prepares everything, and returns its `Work`. While one side works, the
other waits for a command and computes nothing: a side answers only when its workers have nothing left to prefetch.
"""

import multiprocessing as mp
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.hardware import peak_memory

PROC = Path("/proc")


@dataclass(frozen=True)
class Settings:
    """photographs, cifar: class folders of images. seconds: least length of a round of work that is repeated."""

    photographs: Path | None
    cifar: Path | None
    seconds: float


class Work(NamedTuple):
    """round: do one round and return its rate, or its seconds. facts: further entries of the JSON, asked at the end."""

    round: Callable[[], float]
    facts: Callable[[], dict[str, Any]] = dict


def waiting(once: Callable[[], list[float]], about: dict[str, Any]) -> Work:
    """Work whose rounds give [rate, share of the time spent waiting for data]; `about`: more facts."""
    waits: list[float] = []

    def rate() -> float:
        value, wait = once()
        waits.append(wait)
        return value

    return Work(rate, lambda: {"data_wait": statistics.median(waits[1:] or waits)} | about)  # the first warms up


Make = Callable[[Settings], Work]


class SideError(Exception):
    """A side could not be measured; the message is its traceback."""


class Side:
    """A process that holds one side of a row; it may compute on `cores` cores, 0 for all."""

    def __init__(self, make: Make, settings: Settings, cores: int):
        context = mp.get_context("spawn")
        self.pipe, remote = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, settings, cores, remote))
        self.process.start()
        remote.close()
        self.seconds_to_start: float = self._receive()

    def round(self) -> float:
        seconds: float = self._ask("round")
        return seconds

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._ask("facts")
        return {"seconds_to_start": self.seconds_to_start} | facts

    def close(self) -> None:
        self.pipe.close()  # the process ends, and its workers with it
        self.process.join(timeout=30)
        if self.process.is_alive():
            self.process.kill()

    def _ask(self, command: str) -> Any:
        self.pipe.send(command)
        return self._receive()

    def _receive(self) -> Any:
        try:
            fine, value = self.pipe.recv()
        except EOFError:
            raise SideError("the process was killed, or crashed below Python") from None
        if not fine:
            raise SideError(value)
        return value


def _serve(make: Make, settings: Settings, cores: int, pipe: Connection) -> None:
    try:
        _prepare(cores)
        start = time.perf_counter()
        work = make(settings)
        answer: Any = time.perf_counter() - start
        work.round()  # the workers are started, the caches warm
        settle()
        while True:
            pipe.send((True, answer))
            if pipe.recv() == "round":
                answer = work.round()
                settle()
            else:
                answer = memory() | work.facts()
    except (EOFError, KeyboardInterrupt):  # the process that asks has ended
        return
    except BaseException:  # whatever it is, the row must fail with it
        pipe.send((False, traceback.format_exc()))


def _prepare(cores: int) -> None:
    """Restrict this process to the cores and threads that the row allows, and silence its libraries."""
    mp.set_start_method(None, force=True)  # workers start as they usually do here, not as this process did
    warnings.filterwarnings("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if cores:
        torch.set_num_threads(cores)
        if hasattr(os, "sched_setaffinity"):  # Linux: workers and libraries with threads of their own obey too
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def settle() -> None:
    """Wait until neither this process nor its workers compute: their prefetching would disturb the other side."""
    if not PROC.exists():
        time.sleep(1)
        return
    before, now = -1.0, _cpu_seconds()
    while now - before > 0.02:
        time.sleep(0.2)
        before, now = now, _cpu_seconds()


def _cpu_seconds() -> float:
    ticks = 0
    for pid in _processes():
        fields = (PROC / pid / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> list[str]:
    return [str(os.getpid()), *(str(child.pid) for child in mp.active_children())]


_workers_peak = 0  # bytes


def note_workers() -> None:
    """Record the memory of the workers: to be called before a round ends them."""
    global _workers_peak
    if PROC.exists():
        private = (_kilobytes(pid, "status", "VmHWM") - _shared(pid) for pid in _processes()[1:])
        _workers_peak = max(_workers_peak, 1024 * sum(private))


def memory() -> dict[str, Any]:
    """Bytes at the peak: of the host, None where there is no /proc, and of the device where there is one.

    The host's are those of the process, and of each worker what it does not share with others (a worker that was
    forked sees its parent's pages as its own). Not ru_maxrss, which a process inherits from the one that started it.
    """
    note_workers()
    own = 1024 * _kilobytes("self", "status", "VmHWM") if PROC.exists() else None
    device = {"device_peak_bytes": peak_memory("cuda")} if torch.cuda.is_available() else {}
    return {"host_peak_bytes": own and own + _workers_peak, "of_workers": _workers_peak} | device


def _shared(pid: str) -> int:
    return sum(_kilobytes(pid, "smaps_rollup", f"Shared_{kind}") for kind in ("Clean", "Dirty"))


def _kilobytes(pid: str, file: str, name: str) -> int:
    line = next(x for x in (PROC / pid / file).read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1])
