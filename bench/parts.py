"""Long work in parts: items that are done in turn until the time is over, and are never done twice.

An item is a list of commands. Its result is one JSON file, which exists only when the item has ended; the file
"begun" beside the logs counts how often it was started. An item that was cut off goes on with its unfinished command.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
GRACE = 15.0  # seconds that a command has to save what it has when the time is over
PACKED = ("*.json", "*.jsonl", "*.log", "*.csv", "*.txt")  # what the archive holds: no weights, no data


@dataclass(frozen=True)
class Item:
    """name: of the result's file. commands: arguments of this Python, one after the other.

    scores: reads the result when all commands have ended. least: seconds below which it is not begun. patience: how
    often it may be begun in its place; one that was cut off as often waits behind the others.
    """

    name: str
    commands: Sequence[Sequence[str]]
    scores: Callable[[], dict[str, Any]] = dict
    least: float = 10.0
    patience: int = 1
    seed: int | None = None


@dataclass
class Part:
    """A part of the work in the folder `output`.

    results/gpu/<name>.json: results. logs/: what the commands printed. work/: run folders, and what an item has done
    so far. about: entries of every result. environment: of the commands, beside that of this process.
    """

    output: Path
    about: dict[str, Any]
    environment: dict[str, str]

    def result(self, item: Item) -> Path:
        return self.output / "results" / "gpu" / f"{item.name}.json"

    def run(self, items: Sequence[Item], seconds: float) -> tuple[list[Item], list[Item]]:
        """Do what is not done, for `seconds` at most; the items that failed and those that are left."""
        end = time.monotonic() + seconds - GRACE
        left = sorted((i for i in items if not self.result(i).exists()), key=self._times_cut_off)
        for item in list(left):
            if end - time.monotonic() < item.least:
                continue  # a shorter one may still fit
            try:
                if self._do(item, end):
                    left.remove(item)
            finally:
                self.pack()
        failed = [i for i in items if i not in left and read_json(self.result(i))["exit_status"]]
        return failed, left

    def pack(self) -> None:
        """Write results.tar.gz whole, or leave the one before."""
        path = self.output / "results.tar.gz"
        with tarfile.open(path.with_suffix(".part"), "w:gz") as archive:
            for file in sorted({f for pattern in PACKED for f in self.output.rglob(pattern)}):
                if "data" not in file.relative_to(self.output).parts[:1]:
                    archive.add(file, str(file.relative_to(self.output)))
        path.with_suffix(".part").replace(path)

    def _state_file(self, item: Item) -> Path:
        return self.output / "work" / f"{item.name}.begun.json"

    def _state(self, item: Item) -> dict[str, Any]:
        """How often the item was begun, and the seconds of its commands that ended."""
        path = self._state_file(item)
        return read_json(path) if path.exists() else {"begun": 0, "seconds": []}

    def _times_cut_off(self, item: Item) -> int:
        begun: int = self._state(item)["begun"]
        return max(0, begun - item.patience + 1)

    def _do(self, item: Item, end: float) -> bool:
        """Run the commands that have not ended; whether the item has a result now."""
        path, state = self._state_file(item), self._state(item)
        state["begun"] += 1
        write_state(path, state)
        status = 0
        for number, words in enumerate(item.commands):
            if number < len(state["seconds"]):
                continue  # it ended at an earlier time
            started, log = time.monotonic(), self.output / "logs" / f"{item.name}.log"
            spent = state.get("cut_off", 0.0)
            filled = [word.replace("{begun}", str(state["begun"])) for word in words]
            print(f"{item.name}: {' '.join(filled)}", flush=True)
            ended = run_command([sys.executable, *filled], end, log, os.environ | self.environment)
            seconds = round(spent + time.monotonic() - started, 1)
            if ended is None:
                write_state(path, state | {"cut_off": seconds})
                print(f"{item.name}: cut off after {seconds:.0f} s; the same command goes on with it", flush=True)
                return False
            status = ended
            state = {"begun": state["begun"], "seconds": [*state["seconds"], seconds]}
            if status:
                break
            write_state(path, state)
        self._write_result(item, state, status)
        return True

    def _write_result(self, item: Item, state: dict[str, Any], status: int) -> None:
        result: dict[str, Any] = {"name": item.name, "exit_status": status, "seed": item.seed}
        result |= {"commands": [["python3", *words] for words in item.commands], "seconds": state["seconds"]}
        result |= {"begun": state["begun"], "scores": {}}
        try:
            result["scores"] = item.scores()
        except Exception as e:  # it wrote nothing that can be read: the other items must go on
            result |= {"exit_status": status or 1, "error": f"{type(e).__name__}: {e}"}
        write_state(self.result(item), result | self.about)
        ended = f"failed, see logs/{item.name}.log" if result["exit_status"] else str(result["scores"])
        print(f"{item.name}: {sum(state['seconds']):.0f} s, {ended}", flush=True)


def write_state(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def run_command(words: Sequence[str], end: float, log: Path, environment: dict[str, str]) -> int | None:
    """The exit status of a command, or None where it was ended because the time `end` came; its output is appended.

    It is told to end first, so that a training run saves a checkpoint. Its process group ends with it, and with this
    process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   start_new_session=True, preexec_fn=_end_with_parent)  # fmt: skip
        try:
            return process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)


def _end_with_parent() -> None:
    """Linux: the command gets SIGTERM when this process is gone, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _end_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it
    process.wait()
