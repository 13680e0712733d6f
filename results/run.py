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
from results.tables import EVALUATE, PRETRAIN, ROOT, Run, read_record


class Worker(threading.Thread):
    """Take the next run that nobody has taken until the time is over; at the end, ask the running command to stop."""

    def __init__(self, take: Callable[[], Run | None], deadline: float) -> None:
        super().__init__()
        self.take, self.deadline = take, deadline

    def run(self) -> None:
        while time.time() < self.deadline and (run := self.take()):
            if error := run_commands(run, self.deadline):
                print(f"{run.table} {run.name}: {error}", flush=True)
            elif run.is_done():
                print(summary(run), flush=True)


def run_commands(run: Run, deadline: float) -> str:
    """Run the commands of a run that have no record yet; what is wrong, or nothing."""
    folder = ROOT / MODELS / run.table
    folder.mkdir(parents=True, exist_ok=True)
    for command in run.commands:
        if read_record(run.table, command.run_id):
            continue
        if command.program == EVALUATE:  # what an evaluation left that was cut off is refused as another run's
            shutil.rmtree(folder / command.run_id, ignore_errors=True)
        resume = ["--resume", "auto"] if command.program == PRETRAIN else []
        log = folder / f"{run.name}.log"
        with log.open("a") as output:
            words = [sys.executable, command.program, *command.words, *resume]
            process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output, env=one_thread())
            code = wait(process, deadline)
        if time.time() > deadline:
            return ""
        if code:
            return f"{command.program} ended with {code}; see {log.relative_to(ROOT)}"
    return ""


def one_thread() -> dict[str, str]:
    """The environment of a command that computes with one thread: two runs at a time then share two cores well."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wait(process: "subprocess.Popen[bytes]", deadline: float) -> int:
    """Wait for a command, and ask it to stop at the deadline: a pretraining then saves its state."""
    try:
        return process.wait(max(0.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        return process.wait()


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
    """Run what is missing with several workers, until all is there or the minutes are over."""
    lock, taken = threading.Lock(), set[str]()

    def take() -> Run | None:
        with lock:
            for run in runs():  # anew: a search that is complete lets other runs begin
                key = f"{run.table}/{run.name}"
                ready = all(read_record(*need.split("/")) for need in run.needs)
                if key not in taken and ready and not run.is_done():
                    taken.add(key)
                    return run
            return None

    deadline = time.time() + 60 * minutes
    pool = [Worker(take, deadline) for _ in range(workers)]
    for worker in pool:
        worker.start()
    for worker in pool:
        worker.join()
