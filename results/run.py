"""Fill a table: run what the ledger lacks, in the order of value, for some minutes; what was begun is resumed.

python3 -m results run methods --minutes 60 --workers 2
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results.rows import MODELS
from results.tables import EVALUATE, PRETRAIN, ROOT, TABLES, Run, read_record
from utils.errors import Interrupted


class Filling:
    """Runs that several workers take one after another until a deadline, which may be moved to now."""

    def __init__(self, runs: Callable[[], Iterable[Run]], deadline: float) -> None:
        self.runs, self.deadline = runs, deadline
        self.failed = 0  # runs that ended with an error
        self._lock, self._taken, self._busy = threading.Lock(), set[str](), 0
        self._restoring: dict[str, threading.Lock] = defaultdict(threading.Lock)

    @property
    def is_over(self) -> bool:
        return time.time() >= self.deadline

    def take(self) -> Run | None:
        """The first run that nobody has taken, that has no records and whose needs have theirs."""
        with self._lock:
            for run in self.runs():  # anew: a search that is complete lets other runs begin
                key = f"{run.table}/{run.name}"
                ready = all(read_record(*need.split("/")) for need in run.needs)
                if key not in self._taken and ready and not run.is_done():
                    self._taken.add(key)
                    self._busy += 1
                    return run
            return None

    def work(self) -> None:
        """Take runs and compute them until the deadline, or until there is none and no worker may make one ready."""
        while not self.is_over:
            others = self._busy  # read first: a run that ends after `take` looked may have made another one ready
            if run := self.take():
                self.work_on(run)
            elif others:
                time.sleep(0.2)
            else:
                return

    def work_on(self, run: Run) -> None:
        """Compute a run that was taken, and print how it ended."""
        try:
            error = self.compute(run)
        finally:
            with self._lock:
                self._busy -= 1
        if error:
            self.failed += 1
            print(f"{run.table} {run.name}: {error}", flush=True)
        elif run.is_done():
            print(summary(run), flush=True)

    def compute(self, run: Run) -> str:
        """Run the commands of a run that have no record yet; what is wrong, or nothing."""
        folder = ROOT / MODELS / run.table
        needs = list(run.needs)
        for command in run.commands:
            if self.is_over:
                break
            if all(read_record(run.table, name) for name in command.records):
                needs.append(f"{run.table}/{command.run_id}")
                continue
            if error := next(filter(None, map(self.restore, needs)), ""):
                return error
            if command.program != PRETRAIN:
                remove_left((folder / name for name in command.records), command.words)
            resume = ["--resume", "auto"] if command.program == PRETRAIN else []
            words = [*command.program.split(), *command.words, *resume]
            if error := self.execute(words, folder / f"{run.name}.log"):
                return error
        return ""

    def restore(self, need: str) -> str:
        """Run a recorded command again where its files are gone, as in another checkout; what is wrong, or nothing.

        What it builds on comes first. The ledger keeps its record. A file beside the run folder says that its files are
        not complete yet.
        """
        table, name = need.split("/")
        record = read_record(table, name)
        assert record is not None  # a run is taken when what it needs has a record
        folder = ROOT / MODELS / table / name
        incomplete = folder.with_suffix(".incomplete")
        with self._lock:
            lock = self._restoring[need]
        with lock:
            is_there = all(path.exists() for path in (folder, *cluster_files(record["argv"])))
            if self.is_over or (is_there and not incomplete.exists()):
                return ""
            if error := next(filter(None, map(self.restore, builds_on(table, name))), ""):
                return error
            folder.parent.mkdir(parents=True, exist_ok=True)
            incomplete.touch()
            if record["kind"] == "evaluation":
                remove_left([folder], record["argv"])
            error = self.execute(restoring_words(record), folder.with_suffix(".log"))
            if not error and not self.is_over:
                incomplete.unlink()
            return error

    def execute(self, words: Sequence[str], log: Path) -> str:
        """Run a command of one thread, its output in a file; what is wrong, or nothing."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env=one_thread(),
                start_new_session=True,  # Ctrl-C reaches it through us alone
            )
            code = self.wait(process)
        return f"{words[0]} ended with {code}; see {log.relative_to(ROOT)}" if code and not self.is_over else ""

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for a command, and ask it to stop at the deadline: a pretraining then saves its state."""
        while process.poll() is None and not self.is_over:
            time.sleep(0.2)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        return process.wait()


def builds_on(table: str, name: str) -> list[str]:
    """The records "table/record" whose files a recorded command reads: the needs of its run, its earlier commands."""
    for run in TABLES[table]():
        names = [command.run_id for command in run.commands]
        if name in names:
            return [*run.needs, *(f"{table}/{earlier}" for earlier in names[: names.index(name)])]
    return []


def cluster_files(words: Sequence[str]) -> list[Path]:
    """The file beside its run folder that a command writes: cluster ids, or none."""
    return [ROOT / value for flag, value in itertools.pairwise(words) if flag == "--cluster_output"]


def remove_left(folders: Iterable[Path], words: Sequence[str]) -> None:
    """Remove what a command left that was cut off and cannot be resumed: it refuses to write over another's files."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for file in cluster_files(words):
        file.unlink(missing_ok=True)


def restoring_words(record: Mapping[str, Any]) -> list[str]:
    """Program and arguments that make the files of a recorded run again, without a record; resumed where it can be."""
    words = list(record["argv"])
    at = words.index("--record")
    del words[at : at + 2]
    if record["kind"] == "evaluation":
        return [EVALUATE, *words]
    return [PRETRAIN, *words, *([] if "--resume" in words else ["--resume", "auto"])]


def one_thread() -> dict[str, str]:
    """The environment of a command that computes with one thread: two runs at a time then share two cores well."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def summary(run: Run) -> str:
    """One line on a finished run: kNN and seconds of its pretraining."""
    for command in run.commands:
        record = read_record(run.table, command.run_id) or {}
        if "knn_20" in record.get("scores", {}):
            return (
                f"{run.table} {run.name}: kNN 20 {record['scores']['knn_20']['value']:.1f}, {record['seconds']:.0f} s"
            )
    return f"{run.table} {run.name}: done"


def fill(runs: Callable[[], Iterable[Run]], minutes: float, workers: int) -> int:
    """Run what is missing with several workers, until all is there or the minutes are over, or a signal says stop.

    Returns how many runs failed.
    """
    filling = Filling(runs, time.time() + 60 * minutes)
    pool = [threading.Thread(target=filling.work) for _ in range(workers)]
    try:
        for worker in pool:
            worker.start()
        wait_for(pool)
    except BaseException as error:
        filling.deadline = 0.0
        wait_for(pool)
        if isinstance(error, (KeyboardInterrupt, Interrupted)):
            code = getattr(error, "code", 128 + signal.SIGINT)
            message = "Stopped; the same command goes on, pretrainings from the step that they saved"
            raise Interrupted(message, code - 128) from error
        raise
    return filling.failed


def wait_for(pool: Iterable[threading.Thread]) -> None:
    """Wait until all threads have ended; a signal may interrupt it, and it may be called again.

    Up to Python 3.12 a `join` that a signal interrupts takes the thread for ended, and the next one does not wait.
    """
    while any(worker.is_alive() for worker in pool):
        time.sleep(0.2)
