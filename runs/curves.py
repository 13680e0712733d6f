"""The curves of a run's report, from the rows of metrics.csv."""

import math
import re
from typing import Any

MOST_POINTS = 400  # of a curve; of more rows the smallest and largest value of each stretch are kept
MOST_CURVES = 60
WORDS = {
    "val_probe_acc": "probe, validation",
    "probe_acc": "probe, training",
    "nn_label_acc": "neighbours of the query's class",
    "nn_similarity": "similarity to the nearest neighbour",
    "nn_distinct": "share of distinct neighbours",
    "images_per_second": "images per second",
    "data_wait_fraction": "share of time waiting for data",
    "lr": "learning rate",
    "loss": "loss",
    "quality/rankme": "RankMe",
    "quality/alpha_req": "alpha-ReQ",
    "quality/uniformity": "uniformity of the features",
    "quality/std": "standard deviation of the features",
}
ACCURACY = r"knn_\d+|\w*_acc"
HIDDEN = ("step", "epoch")
Points = list[tuple[int, float]]


def metric_title(name: str) -> str:
    """The words for a column of metrics.csv."""
    if match := re.fullmatch(r"knn_(\d+)", name):
        return f"kNN {match[1]}"
    return WORDS.get(name, name.replace("_", " "))


def capitalized(text: str) -> str:
    """A text with a capital letter at its beginning; the others stay."""
    return text[:1].upper() + text[1:]


def panels(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Charts of the metrics: the loss, all accuracies together, then one for each other column.

    Each has a title, a unit and series: name and (step, value) points, at most MOST_POINTS.
    """
    columns = [name for name in rows[0] if name not in HIDDEN][:MOST_CURVES] if rows else []
    points = {name: thinned(_points(rows, name)) for name in columns}
    points = {name: values for name, values in points.items() if values}
    accuracies = sorted((name for name in points if re.fullmatch(ACCURACY, name)), key=accuracy_rank)
    charts = [("Accuracy", "%", accuracies)] if accuracies else []
    charts += [(capitalized(metric_title(name)), "", [name]) for name in points if name not in accuracies]
    charts.sort(key=lambda chart: chart[2] != ["loss"])
    return [
        {"title": title, "unit": unit, "series": [{"name": metric_title(n), "points": points[n]} for n in names]}
        for title, unit, names in charts
    ]


def accuracy_rank(name: str) -> tuple[int, int]:
    """kNN first, by k; then the probe on validation images, and the others."""
    return (0, int(name[4:])) if name.startswith("knn_") else (1, name != "val_probe_acc")


def _points(rows: list[dict[str, str]], name: str) -> Points:
    values = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [(step, float(f"{value:.6g}")) for step, value in values if math.isfinite(value)]


def thinned(points: Points) -> Points:
    """At most MOST_POINTS of the points, with the extremes of each stretch, so that a spike is still seen."""
    if len(points) <= MOST_POINTS:
        return points
    stretches = MOST_POINTS // 2
    edges = [len(points) * i // stretches for i in range(stretches + 1)]
    kept: set[tuple[int, float]] = set()
    for first, last in zip(edges, edges[1:], strict=False):
        stretch = points[first:last]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)
