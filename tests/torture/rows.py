"""Rows of the table: a fault in a setting, what became of the run, and which promises were broken."""

import re
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from methods import METHODS
from tests.helpers.commands import words
from tests.helpers.images import class_folders
from tests.helpers.runs import TIMINGS, checkpoint, equal
from tests.torture.faults import ENDED, FAULTS, STEPS, Fault
from tests.torture.launch import Command, Ended, Hooks, run_to_end
from utils.files import read_metrics

PIPELINES = ("memory", "stream", "torchvision")
WORKERS = {"memory": "1", "stream": "2", "torchvision": "2", "dali": "2"}
BATCH = 12  # images of the global batch; 60 images are 5 steps
RUN = "r"


@dataclass(frozen=True)
class Setting:
    """Where a fault meets a run: method, pipeline and number of processes."""

    method: str
    pipeline: str
    processes: int


@dataclass
class Row:
    """A fault in a setting. broken: promises that did not hold; lost: optimizer steps that were trained twice."""

    fault: str
    setting: Setting
    outcome: str = ""
    lost: int | None = None
    equal: bool | None = None
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """The texts of the row, as in COLUMNS."""
        same = {True: "yes", False: "NO", None: "-"}[self.equal]
        where = [self.setting.method, self.setting.pipeline, str(self.setting.processes)]
        lost = "-" if self.lost is None else str(self.lost)
        promise = "; ".join(self.broken) if self.broken else "kept"
        return [self.fault, *where, self.outcome, lost, same, f"{self.seconds:.1f}", promise]

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        return content | content.pop("setting")


COLUMNS = ("fault", "method", "pipeline", "processes", "outcome", "steps lost", "equal to the bit", "seconds",
           "promise")  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The table of all rows in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def summary(rows: Sequence[Row]) -> str:
    """A table in Markdown with a line for each fault: its settings together."""
    lines = [
        "| fault | runs | outcome | most steps lost | equal to the bit | promises kept |",
        "|---|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(row.fault for row in rows):
        here = [row for row in rows if row.fault == fault]
        outcomes = ", ".join(sorted({row.outcome for row in here}))
        lost = max((row.lost for row in here if row.lost is not None), default="-")
        judged = [row.equal for row in here if row.equal is not None]
        same = f"{sum(judged)} of {len(judged)}" if judged else "-"
        kept = len(here) - len(broken(here))
        lines.append(f"| {fault} | {len(here)} | {outcomes} | {lost} | {same} | {kept} of {len(here)} |")
    return "\n".join(lines) + "\n"


def broken(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.broken]


def settings_of(fault: Fault, pipelines: Sequence[str] = PIPELINES) -> list[Setting]:
    """Every setting that a fault can meet."""
    return [
        Setting(method, pipeline, processes)
        for method in METHODS
        for pipeline in pipelines
        for processes in fault.processes
        if pipeline in fault.pipelines
    ]


def rotation(faults: Sequence[Fault], each: int, pipelines: Sequence[str] = PIPELINES) -> list[tuple[Fault, Setting]]:
    """Some settings of each fault, so that methods, pipelines and numbers of processes take turns."""
    chosen, used = [], {}
    for fault in faults:
        left = settings_of(fault, pipelines)
        for _ in range(min(each, len(left))):
            here = [s for f, s in chosen if f is fault]

            def uses(setting: Setting, here: list[Setting] = here) -> tuple[int, ...]:
                """How often a setting, and its parts for this fault, had their turn."""
                parts = (setting.pipeline, setting.processes)
                return (
                    sum(part in (s.pipeline, s.processes) for part in parts for s in here),
                    used.get(setting.method, 0),
                    sum(used.get(part, 0) for part in parts),
                )

            setting = min(left, key=uses)
            left.remove(setting)
            for part in (setting.method, setting.pipeline, setting.processes):
                used[part] = used.get(part, 0) + 1
            chosen.append((fault, setting))
    return chosen


def differences(whole: Path, other: Path, metrics: bool = True) -> list[str]:
    """What of two runs is not equal to the bit: weights, optimizer, schedule, backbone, and the logged numbers."""
    a, b = checkpoint(whole), checkpoint(other)
    parts = [part for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
             if not equal(a[part], b[part])]  # fmt: skip
    if not equal(*(load_file(folder / "backbone.safetensors") for folder in (whole, other))):
        parts.append("backbone.safetensors")
    if metrics and _numbers(whole) != _numbers(other):
        parts.append("metrics.csv")
    return parts


def _numbers(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without timings, and without rows of timings alone."""
    rows = [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(folder / "metrics.csv")]
    return [row for row in rows if any(v for k, v in row.items() if k not in ("step", "epoch"))]


class Torture:
    """Commands of small runs in a folder, and the uninterrupted runs that others are compared with."""

    def __init__(self, place: Path, epochs: int = 3, more: Sequence[str] = (), real: bool = False):
        self.place, self.epochs, self.more, self.real = place, epochs, list(more), real
        self._locks: dict[tuple, threading.Lock] = {}
        self._lock = threading.Lock()
        self.images = place / "images"
        class_folders(self.images / "train", classes=3, each=20)
        class_folders(self.images / "val", classes=3, each=8)

    def argv(self, setting: Setting, output: Path, flags: Sequence[str] = (), images: Path | None = None) -> list[str]:
        """The command of a run of 15 steps in the folder output/r, which starts it or goes on with it."""
        few = ["--data_folder", str(images or self.images), "--large_size", "16", "--knn_k", "5",
               "--batch_size", str(BATCH // setting.processes), "--accelerator", "cpu"]  # fmt: skip
        loading = ["--pipeline", setting.pipeline, "--num_workers", WORKERS[setting.pipeline]]
        flags = [*few, *loading, "--epochs", str(self.epochs), *self.more, *flags]
        return ["custom", *words(setting.method, output, *flags)[1:], "--run_id", RUN, "--resume", "auto"]

    def whole(self, setting: Setting, flags: Sequence[str] = ()) -> Path:
        """The folder of the uninterrupted run, trained the first time that it is asked for."""
        key = (setting, tuple(flags))
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        output = self.place / "whole" / "-".join(map(str, (*asdict(setting).values(), *flags)))
        with lock:
            if not (output / RUN / "summary.json").exists():
                output.mkdir(parents=True)
                whole = run_to_end(self.argv(setting, output, flags), output, setting.processes)
                if any(whole.statuses):
                    raise RuntimeError(f"the uninterrupted run failed: {whole.statuses} {whole.text}")
        return output / RUN

    def row(self, fault: Fault, setting: Setting, number: int = 0) -> Row:
        """Meet the fault, go on, and check the result."""
        row, output = Row(fault.name, setting), self.place / f"row-{number}"
        output.mkdir()
        images = Path(shutil.copytree(self.images, output / "images")) if fault.own_images else None
        attempt = _Attempt(self, fault, setting, output, self.argv(setting, output, fault.flags, images), row)
        try:
            whole, began = self.whole(setting, fault.flags), time.monotonic()
            attempt.check(whole)
            row.seconds = time.monotonic() - began
        except Exception as e:  # a defect of the harness, or a run that left files that cannot be read
            row.broken.append(f"{type(e).__name__}: {e}")
        finally:
            attempt.clean_up()
        if not row.broken:
            shutil.rmtree(output)
        return row


class _Attempt:
    """The commands of one row."""

    def __init__(self, torture: Torture, fault: Fault, setting: Setting, output: Path, argv: list[str], row: Row):
        self.torture, self.fault, self.setting = torture, fault, setting
        self.output, self.argv, self.row = output, argv, row
        self.folder = output / RUN
        self.commands: list[Command] = []
        self.steps: list[int] = []

    def start(self, hooks: Hooks = ()) -> Command:
        hooks = [(name, {k: str(self.output / v) if k == "path" else v for k, v in arguments.items()})
                 for name, arguments in hooks]  # fmt: skip
        real = self.torture.real or self.fault.real
        command = Command(self.argv, self.output, self.setting.processes, hooks, self.fault.rank, real)
        self.commands.append(command)
        return command

    def finish(self, command: Command, end_together: bool = False, launcher_ends: bool = False) -> Ended:
        """Wait for the end, and check what no command may do: hang, or print a traceback."""
        ended = command.wait(end_together, launcher_ends)
        self.steps += ended.steps
        number = self.commands.index(command) + 1
        (self.output / f"output-{number}.txt").write_text(f"{ended.statuses}\n{ended.text}")
        self.complain(bool(ended.hung), f"command {number} hung")
        # When a machine dies, a process may see the end of the other one before its own.
        spoken = ended.printed[0] if end_together else ended.text
        if "Traceback" in spoken:
            reason = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt\w*)\b.*", spoken, re.MULTILINE)
            self.complain(True, f"traceback in command {number} ({(reason or ['?'])[-1][:120]})")
        return ended

    def complain(self, condition: bool, text: str) -> None:
        if condition:
            self.row.broken.append(text)

    def check(self, whole: Path) -> None:
        """The first command meets the fault; then the files are damaged; the second one goes on or refuses."""
        fault, row = self.fault, self.row
        first = self.first_command()
        self.check_statuses(first)
        self.complain(not re.search(fault.says, first.text), f"does not say {fault.says!r}")
        row.outcome = "survived"
        if any(first.statuses) or fault.damage:
            row.outcome = "resumed"
            self.go_on()
        row.lost = len(self.steps) - len(set(self.steps))
        self.complain(row.lost > fault.most_lost, f"{row.lost} steps lost, promised at most {fault.most_lost}")
        if row.outcome == "refused":
            return
        never = sorted(set(range(1, STEPS + 1)) - set(self.steps))
        self.complain(bool(never), f"steps that were never trained: {never}")
        found = differences(whole, self.folder, fault.same_metrics)
        row.equal = not [part for part in found if part != "metrics.csv"]
        self.complain(bool(found), f"not equal: {', '.join(found)}")
        left = [path.name for path in self.folder.iterdir() if path.name.endswith(".part")]
        self.complain(bool(left), f"left behind: {', '.join(left)}")

    def first_command(self) -> Ended:
        fault = self.fault
        hooks = list(fault.hooks)
        if fault.second_writer:
            hooks.append(("wait_for", {"step": 7, "path": "go"}))
        command = self.start(hooks)
        if fault.reader_leaves_after is not None:
            command.wait_for_step(fault.reader_leaves_after)
            command.ranks[0].output.close_reader_after_more()
        if fault.second_writer:
            command.wait_for_step(7)
            self.check_refusal(self.finish(self.start(), launcher_ends=True), "in use by another process")
            (self.output / "go").touch()
        return self.finish(command, fault.end_together, fault.launcher_ends)

    def check_statuses(self, ended: Ended) -> None:
        fault = self.fault
        ranks = range(len(ended.statuses))
        hit = [fault.rank or 0] if fault.rank is not None else list(ranks)
        for n in ranks:
            promised = fault.status if n in hit else fault.others or fault.status
            if n not in ended.hung:
                status = ended.statuses[n]
                self.complain(status not in promised, f"process {n + 1} ended with {status}, promised {promised}")

    def check_refusal(self, ended: Ended, says: str) -> None:
        """One line says why, and the status is 2; other processes may be ended by their launcher before that."""
        lines = [line for text in ended.printed for line in text.splitlines() if line.startswith("error: ")]
        refused = 2 in ended.statuses and set(ended.statuses) <= set(ENDED)
        self.complain(not refused, f"refused with {ended.statuses}, promised 2")
        self.complain(not 1 <= len(lines) <= len(ended.printed), f"{len(lines)} lines of error, promised one")
        self.complain(not re.search(says, "\n".join(lines)), f"the refusal does not say {says!r}")

    def go_on(self) -> None:
        """The second command; after a repair the third one."""
        fault = self.fault
        if fault.damage:
            fault.damage(self.folder)
        if fault.then == "refused":
            before = self.content()
            self.check_refusal(self.finish(self.start()), fault.then_says)
            self.complain(before != self.content(), "the refusal changed files")
            if not fault.repair:
                self.row.outcome = "refused"
                return
            fault.repair(self.folder)
        ended = self.finish(self.start())
        self.complain(any(ended.statuses), f"the resumed run ended with {ended.statuses}")
        if fault.then == "resumed":
            self.complain(
                not re.search(fault.then_says, ended.text), f"does not say {fault.then_says!r} when it goes on"
            )

    def content(self) -> dict[str, bytes]:
        """The files of the run, but for the lock."""
        return {p.name: p.read_bytes() for p in self.folder.iterdir() if p.is_file() and p.name != ".lock"}

    def clean_up(self) -> None:
        for command in self.commands:
            command.end_what_is_left()


def default_rows(each: int, pipelines: Sequence[str] = PIPELINES) -> list[tuple[Fault, Setting]]:
    """The rows of the default run."""
    return rotation(FAULTS, each, pipelines)
