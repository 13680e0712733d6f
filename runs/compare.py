"""Several runs beside each other: where their settings differ, and their results with deviations over seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.callbacks import SHOWN
from runs.resume import MAY_CHANGE, PLACE
from utils.errors import UserError
from utils.files import entry, read_json, read_metrics, typed_path
from utils.names import shown

# Flags that change no result, or that the plan gives in a form that compares better.
LEFT_OUT = MAY_CHANGE | PLACE | {
    "seed", "method", "dataset", "name", "project", "preview", "record", "dry_run", "precision", "train_dir", "val_dir",
    "stem",
}  # fmt: skip
NO_CURVE = {"step", "epoch"}
ACCURACIES = ("loss", "probe_acc", "val_probe_acc")  # the first columns, before kNN
MOST_IN_LABEL = 4  # settings that name a group of runs
NONE = "-"  # a setting or a result that a run does not have


@dataclass(frozen=True)
class Run:
    """A run folder as read. settings: what may change its result, except for the seed. metrics: rows of metrics.csv."""

    folder: Path
    method: str
    seed: int
    dataset: str
    fingerprint: str
    total_steps: int
    settings: dict[str, str]
    metrics: list[dict[str, str]]

    @property
    def name(self) -> str:
        """Method, seed and folder."""
        return f"{self.method}, seed {self.seed}, {shown(self.folder.name)}"

    @property
    def columns(self) -> list[str]:
        return [name for name in self.metrics[0] if name not in NO_CURVE]

    @property
    def steps(self) -> int:
        """Optimizer steps that are done, as far as metrics.csv tells."""
        return int(self.metrics[-1]["step"]) + 1

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, finite value) of a metric."""
        pairs = [(int(row["step"]), float(row[name])) for row in self.metrics if row.get(name)]
        return [(step, value) for step, value in pairs if math.isfinite(value)]

    def last(self, name: str) -> float | None:
        """The last finite value of a metric."""
        points = self.points(name)
        return points[-1][1] if points else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only."""

    label: str
    runs: list[Run]

    def cell(self, name: str) -> str:
        """Mean and, of several runs, standard deviation of the last values of a metric, as text."""
        values = [value for run in self.runs if (value := run.last(name)) is not None]
        if not values:
            return NONE
        mean = f"{statistics.fmean(values):.4g}"
        return f"{mean} ± {statistics.stdev(values):.2g} ({len(values)} runs)" if len(values) > 1 else mean


@dataclass(frozen=True)
class Comparison:
    """Groups of runs. differences: setting -> its value in each group. columns: results, the most telling first."""

    groups: list[Group]
    differences: dict[str, list[str]]
    columns: list[str]
    notes: list[str]


def read_run(source: str) -> Run:
    """Read a run folder; what is none, and a run without metrics, is a UserError."""
    folder = typed_path(source)
    if not (folder / "args.json").is_file():
        raise UserError(f"{shown(source)} is no run: it has no args.json; name the folder of a pretraining run")
    path = folder / "args.json"
    content = read_json(path)
    if not content.get("plan"):
        raise UserError(f"{shown(source)} is no pretraining run: its args.json has no plan; name the run behind it")
    method, dataset, fingerprint, precision, stem = (
        entry(path, content, f"plan.{key}", str)
        for key in ("method", "training_set.name", "training_set.fingerprint", "hardware.precision", "backbone.stem")
    )
    parts = [entry(path, content, f"plan.batch.{name}", int) for name in ("batch_size", "processes", "accumulate")]
    flags: dict[str, Any] = entry(path, content, "flags", dict)
    derived = {
        "method": method, "data set": f"{dataset} {fingerprint}", "global batch": str(math.prod(parts)),
        "precision": precision, "stem": stem,
    }  # fmt: skip
    settings = {name: _text(value) for name, value in flags.items() if name not in LEFT_OUT}
    metrics = read_metrics(folder / "metrics.csv")
    if not metrics:
        raise UserError(
            f"{shown(source)} has no metrics yet: metrics.csv has no row; wait for the first, or leave it out"
        )
    seed, steps = (entry(path, content, f"plan.{key}", int) for key in ("seed", "schedule.total_steps"))
    return Run(folder.resolve(), method, seed, dataset, fingerprint, steps, derived | settings, metrics)


def compare(sources: Sequence[str]) -> Comparison:
    """Read run folders and group the runs that differ in their seeds only."""
    runs = [read_run(source) for source in sources]
    for run in runs:
        if sum(other.folder == run.folder for other in runs) > 1:
            raise UserError(f"{shown(run.folder)} is named twice; name each run once")
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    first = [members[0].settings for members in groups.values()]
    names = dict.fromkeys(name for settings in first for name in settings)
    differences = {name: [settings.get(name, NONE) for settings in first] for name in names}
    differences = {name: values for name, values in differences.items() if len(set(values)) > 1}
    labels = _labels(first, differences)
    whole = [Group(label, members) for label, members in zip(labels, groups.values(), strict=True)]
    found = dict.fromkeys(name for run in runs for name in run.columns if run.points(name))
    knn = [name for name in found if name.startswith("knn_")]
    order = [*(name for name in ACCURACIES if name in found), *knn, *(name for name in SHOWN if name in found), *found]
    return Comparison(whole, differences, list(dict.fromkeys(order)), list(_notes(runs, whole)))


def _labels(first: Sequence[dict[str, str]], differences: dict[str, list[str]]) -> list[str]:
    """A name for each group: its method, and as many settings that all groups have as make the names differ."""
    labels = [settings["method"] for settings in first]
    shared = [name for name, values in differences.items() if name != "method" and NONE not in values]
    for name in shared[:MOST_IN_LABEL]:
        if len(set(labels)) < len(labels):
            labels = [f"{label}, {name} {settings[name]}" for label, settings in zip(labels, first, strict=True)]
    return [f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def _notes(runs: Sequence[Run], groups: Sequence[Group]) -> Iterable[str]:
    """What makes numbers of these runs hard to compare."""
    if len({run.fingerprint for run in runs}) > 1:
        sets = ", ".join(sorted({f"{run.dataset} ({run.fingerprint})" for run in runs}))
        yield f"the runs have different training images, {sets}: their numbers do not compare"
    if len({run.method for run in runs}) > 1:
        yield "the losses of different methods do not compare"
    for run in runs:
        if run.steps < run.total_steps and run.steps + 1 < run.total_steps:
            yield f"{run.name} is not finished: its last row is of step {run.steps:,} of {run.total_steps:,}"
    for group in groups:
        seeds = [run.seed for run in group.runs]
        if len(set(seeds)) < len(seeds):
            yield f"{group.label}: several runs have one seed, so its deviation is not only that over seeds"


def as_text(comparison: Comparison) -> str:
    """Notes, differences and results as lines for a terminal."""
    groups = comparison.groups
    main = main_results(comparison.columns)
    results = [["last values", *main], *([group.label, *(group.cell(name) for name in main)] for group in groups)]
    runs = [
        ["run", *main],
        *([run.name, *map(as_number, map(run.last, main))] for group in groups for run in group.runs),
    ]
    parts = [_aligned(results), _aligned(runs)]
    if comparison.differences:
        head = ["settings that differ", *(group.label for group in groups)]
        parts.insert(0, _aligned([head, *([name, *values] for name, values in comparison.differences.items())]))
    return "\n\n".join([*(f"note: {note}" for note in comparison.notes), *parts])


def main_results(columns: Iterable[str]) -> list[str]:
    """The metrics that go into tables: loss, accuracies and speed."""
    return [name for name in columns if name in SHOWN or name.startswith("knn_")]


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_number(value: float | None) -> str:
    """A result with four digits."""
    return NONE if value is None else f"{value:.4g}"


def _text(value: Any) -> str:
    return " ".join(map(_text, value)) if isinstance(value, list) else shown(str(value))
