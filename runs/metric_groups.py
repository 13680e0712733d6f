"""Names of metrics on dashboards, in groups; metrics.csv keeps the plain ones."""

import math
from collections.abc import Mapping, Sequence

GROUP_OF_PREFIX = {"val_": "val/", "knn_": "knn/", "queue_": "queue/", "nn_": "queue/nn_"}
TIMES = ("images_per_second", "data_wait_fraction")
COUNTERS = ("step", "epoch")


def grouped(name: str) -> str:
    """A metric's name on a dashboard: its group, "/", and the name, as train/loss, knn/20 or time/images_per_second."""
    if "/" in name or name in COUNTERS:
        return name
    if name in TIMES:
        return f"time/{name}"
    for prefix, group in GROUP_OF_PREFIX.items():
        if name.startswith(prefix):
            return group + name.removeprefix(prefix)
    return f"train/{name}"


def best_and_last(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """best/<group>/<name> and last/<group>/<name> of the rows of metrics.csv, for a run's summary.

    The best loss is the smallest, the best accuracy the largest; other metrics have no best.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, text in row.items():
            if text and name not in COUNTERS and math.isfinite(float(text)):
                values.setdefault(name, []).append(float(text))
    summary = {f"last/{grouped(name)}": column[-1] for name, column in values.items()}
    for name, column in values.items():
        if name == "loss" or name.endswith("_acc") or name.startswith("knn_"):
            summary[f"best/{grouped(name)}"] = min(column) if name == "loss" else max(column)
    return summary
