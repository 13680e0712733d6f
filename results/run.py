"""Fill a table: run what the ledger lacks, in the order of value, for some minutes; what was begun is resumed.

python3 -m results run methods --minutes 60 --workers 2
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable

from results.tables import EVALUATE, HERE, MODELS, PRETRAIN, Run, read_record

ROOT = HERE.parent
FAILED = -1


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
    for program, arguments in run.commands:
        words = shlex.split(arguments)
        if "--record" in words and read_record(run.table, words[words.index("--run_id") + 1]):
            continue
        resume = ["--resume", "auto"] if program == PRETRAIN else []
        log = ROOT / MODELS / run.table / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if program == EVALUATE:
            remove_cut_off(ROOT / MODELS / run.table / words[words.index("--run_id") + 1])
        with log.open("a") as output:
            command = [sys.executable, program, *words, *resume]
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=one_thread())
            code = wait(process, deadline)
        if time.time() > deadline:
            return ""
        if code:
            return f"{program} ended with {code}; see {log.relative_to(ROOT)}"
    return ""


def remove_cut_off(folder: "os.PathLike[str]") -> None:
    """Remove the folder of an evaluation that was cut off: it would be refused as another run's."""
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


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
    """One line on a finished run: seconds, and kNN of the last record."""
    record = read_record(run.table, run.records[0]) or {}
    knn = record.get("scores", {}).get("knn_20", {}).get("value", float("nan"))
    return f"{run.table} {run.name}: kNN 20 {knn:.1f}, {record.get('seconds', 0):.0f} s"


def fill(runs: Callable[[], Iterable[Run]], minutes: float, workers: int) -> None:
    """Run what is missing with several workers, until all is there or the minutes are over."""
    lock, taken = threading.Lock(), set[str]()

    def take() -> Run | None:
        with lock:
            for run in runs():  # anew: a search that is complete lets other runs begin
                done = {need for need in run.needs if read_record(run.table, need)}
                if run.name not in taken and not run.is_done() and done == {*run.needs}:
                    taken.add(run.name)
                    return run
            return None

    deadline = time.time() + 60 * minutes
    pool = [Worker(take, deadline) for _ in range(workers)]
    for worker in pool:
        worker.start()
    for worker in pool:
        worker.join()
