"""Fill a table: run what the ledger lacks, in the order of value, for some minutes; what was begun is resumed.

python3 -m results run methods --minutes 60 --workers 2
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable

from results.rows import MODELS
from results.tables import PRETRAIN, ROOT, Run, read_record


class Filling:
    """Runs that several workers take one after another until a deadline, which may be moved to now."""

    def __init__(self, runs: Callable[[], Iterable[Run]], deadline: float) -> None:
        self.runs, self.deadline = runs, deadline
        self._lock, self._taken = threading.Lock(), set[str]()

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
                    return run
            return None

    def work(self) -> None:
        """Take runs and compute them until the deadline, or until there is none."""
        while not self.is_over and (run := self.take()):
            error = self.compute(run)
            if error:
                print(f"{run.table} {run.name}: {error}", flush=True)
            elif run.is_done():
                print(summary(run), flush=True)

    def compute(self, run: Run) -> str:
        """Run the commands of a run that have no record yet; what is wrong, or nothing."""
        folder = ROOT / MODELS / run.table
        folder.mkdir(parents=True, exist_ok=True)
        for command in run.commands:
            if self.is_over or all(read_record(run.table, name) for name in command.records):
                continue
            if command.program != PRETRAIN:  # what it left when it was cut off is refused as another run's
                for name in command.records:
                    shutil.rmtree(folder / name, ignore_errors=True)
            resume = ["--resume", "auto"] if command.program == PRETRAIN else []
            log = folder / f"{run.name}.log"
            with log.open("a") as output:
                words = [sys.executable, *command.program.split(), *command.words, *resume]
                process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output, env=one_thread(),
                                           start_new_session=True)  # fmt: skip  # Ctrl-C reaches it through us alone
                code = self.wait(process)
            if code and not self.is_over:
                return f"{command.program} ended with {code}; see {log.relative_to(ROOT)}"
        return ""

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for a command, and ask it to stop at the deadline: a pretraining then saves its state."""
        while process.poll() is None and not self.is_over:
            time.sleep(0.2)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        return process.wait()


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


def fill(runs: Callable[[], Iterable[Run]], minutes: float, workers: int) -> None:
    """Run what is missing with several workers, until all is there or the minutes are over, or a signal says stop."""
    filling = Filling(runs, time.time() + 60 * minutes)
    pool = [threading.Thread(target=filling.work) for _ in range(workers)]
    try:
        for worker in pool:
            worker.start()
        for worker in pool:
            worker.join()
    except BaseException:
        filling.deadline = 0.0
        for worker in pool:
            worker.join()
        raise
