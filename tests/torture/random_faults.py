"""Faults at random moments: a run that is killed, stopped, starved and damaged on its way must equal the whole one."""

import contextlib
import json
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from methods import METHODS
from runs.checkpoint import LAST, PREVIOUS
from tests.torture.faults import ENDED, EPOCH
from tests.torture.launch import Command, Ended
from tests.torture.rows import PIPELINES, RUN, Setting, Torture, differences

EPOCHS = 12
MOST_FAULTS = 8  # of one run, then it may go to its end
PAUSE = 0.5  # seconds, on average, for which a process is stopped or its disk is full
INFINITE = resource.RLIM_INFINITY


def _signal(number: signal.Signals) -> Callable[[Command, random.Random], None]:
    def send(command: Command, rng: random.Random) -> None:
        for each in command.ranks:
            each.send(number)

    return send


def _stop_and_continue(command: Command, rng: random.Random) -> None:
    for each in command.ranks:
        each.send(signal.SIGSTOP)
    time.sleep(rng.expovariate(1 / PAUSE))
    for each in command.ranks:
        each.send(signal.SIGCONT)


def _fill_disk(command: Command, rng: random.Random) -> None:
    """Let writes beyond some byte of a file fail for a while."""
    size, seconds = rng.choice([0, 0, 1000, 100_000, 2_000_000]), rng.expovariate(1 / PAUSE)
    for limit in (size, INFINITE):
        for each in command.ranks:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (limit, INFINITE))
        if limit != INFINITE:
            time.sleep(seconds)


# kind -> (what it does to a command that runs, how the command may end; it may always be done before)
FAULTS: dict[str, tuple[Callable[[Command, random.Random], None], set[int]]] = {
    "kill -9": (_signal(signal.SIGKILL), {-9}),
    "SIGTERM": (_signal(signal.SIGTERM), {143, -15}),  # -15: within the imports, before the application has a handler
    "SIGINT": (_signal(signal.SIGINT), {130, -2}),
    "SIGHUP": (_signal(signal.SIGHUP), {129, -1}),
    "SIGUSR1": (_signal(signal.SIGUSR1), {138, -10}),
    "stop and continue": (_stop_and_continue, set()),
    "full disk": (_fill_disk, set(ENDED)),
}
DAMAGE = ("flipped bit", "cut file", "missing file")  # to last.ckpt, between two commands


def damage(folder: Path, kind: str, rng: random.Random) -> bool:
    """Damage last.ckpt where the checkpoint before it is there to go on from; whether that was so."""
    path = folder / LAST
    if not path.exists() or not (folder / PREVIOUS).exists():
        return False
    content = bytearray(path.read_bytes())
    if kind == "flipped bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut file":
        content = content[: rng.randrange(len(content))]
    path.write_bytes(content)
    if kind == "missing file":
        path.unlink()
    return True


class Trial:
    """One run from its start to its end through random faults. The choices are a function of (seed, number)."""

    def __init__(self, torture: Torture, seed: int, number: int):
        self.torture, self.name = torture, f"seed {seed}, run {number}"
        self.rng = random.Random(f"{seed} {number}")
        self.setting = Setting(self.rng.choice(list(METHODS)), self.rng.choice(PIPELINES), self.rng.choice([1, 1, 2]))
        self.output = torture.place / f"run-{number}"
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self.broken: list[str] = []
        self.last_step, self.seconds = 0, 0.0

    def go(self) -> "Trial":
        """Train the whole run, then one with faults, and compare the two."""
        began = time.monotonic()
        whole = self.torture.whole(self.setting)
        self.output.mkdir()
        done = False
        while not done and not self.broken:
            done = self.command()
        if done:
            self.complain(", ".join(differences(whole, self.output / RUN, metrics=not self.counts["full disk"])))
        self.seconds = time.monotonic() - began
        return self

    def command(self) -> bool:
        """One command, met by one fault or none; whether it went to its end."""
        command = Command(self.torture.argv(self.setting, self.output), self.output, self.setting.processes)
        kind, allowed = "none", set()
        if sum(self.counts.values()) < MOST_FAULTS:
            kind = self.rng.choice(list(FAULTS))
            act, allowed = FAULTS[kind]
            command.wait_until_started()
            self.wait_for_a_moment(command)
            if any(each.status() is None for each in command.ranks):
                self.counts[kind] += 1
                act(command, self.rng)
        ended = command.wait(end_together=kind == "kill -9", launcher_ends=kind == "full disk")
        command.end_what_is_left()
        self.last_step = ended.steps[-1] if ended.steps else self.last_step
        self.story.append(f"{kind} -> {ended.statuses} after step {self.last_step}")
        self.check(ended, allowed)
        if any(ended.statuses) and self.rng.random() < 0.3:
            kind = self.rng.choice(DAMAGE)
            if damage(self.output / RUN, kind, self.rng):
                self.counts[kind] += 1
                self.story.append(kind)
        return not any(ended.statuses)

    def wait_for_a_moment(self, command: Command) -> None:
        """Wait until a random moment after a random step that is still to come, or while the command begins."""
        if self.last_step == EPOCHS * EPOCH or self.rng.random() < 0.3:
            time.sleep(self.rng.uniform(0, 1.5))
            return
        command.wait_for_step(self.rng.randint(self.last_step + 1, EPOCHS * EPOCH))
        time.sleep(self.rng.uniform(0, 0.1))

    def check(self, ended: Ended, allowed: set[int]) -> None:
        wrong = set(ended.statuses) - allowed - {0}
        self.complain(f"ended with {ended.statuses}" if wrong else "")
        self.complain("hung" if ended.hung else "")
        self.complain("traceback" if "Traceback" in ended.text else "")
        if self.broken:
            (self.output / "output.txt").write_text(ended.text)

    def complain(self, text: str) -> None:
        if text:
            self.broken.append(text)

    def line(self) -> str:
        where = f"{self.setting.method}, {self.setting.pipeline}, {self.setting.processes} processes"
        result = "equal to the bit" if not self.broken else f"BROKEN: {'; '.join(self.broken)}"
        return f"{self.name}: {where}: {sum(self.counts.values())} faults, {self.seconds:.0f} s: {result}"


def random_faults(place: Path, output: Path, minutes: float, seed: int, jobs: int) -> bool:
    """Start runs for some minutes; print each, the counts of faults by kind, and what failed. Whether any failed."""
    torture, end = Torture(place, EPOCHS), time.monotonic() + 60 * minutes
    trials: list[Trial] = []

    def work(first: int) -> None:
        number = first
        while time.monotonic() < end:
            trials.append(trial := Trial(torture, seed, number).go())
            print(trial.line(), flush=True)
            for step in trial.story if trial.broken else ():
                print(f"    {step}", flush=True)
            number += jobs

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work, first) for first in range(jobs)]:
            future.result()
    counts = sum((trial.counts for trial in trials), Counter())
    failed = [trial for trial in trials if trial.broken]
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    print(f"\n{len(trials)} runs, {sum(counts.values())} faults ({kinds})")
    print(f"{len(trials) - len(failed)} equal to the bit, {len(failed)} broken")
    for trial in failed:
        print(trial.line())
    content = {"seed": seed, "minutes": minutes, "faults": counts, "runs": [
        {"run": t.name, "setting": vars(t.setting), "story": t.story, "broken": t.broken} for t in trials
    ]}  # fmt: skip
    (output / "random.json").write_text(json.dumps(content, indent=2) + "\n")
    return bool(failed)
