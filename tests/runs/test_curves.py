"""Curves of a run's report: which charts there are, and what is left of many points."""

import math

from runs.curves import MOST_POINTS, metric_title, panels, thinned


def test_titles_of_charts_are_names_and_begin_with_a_capital_letter():
    row = {"step": "0", "quality/rankme": "9", "quality/alpha_req": "3", "quality/std": "1", "nn_distinct": "1"}
    titles = [chart["title"] for chart in panels([row])]
    assert titles == ["RankMe", "Alpha-ReQ", "Standard deviation of the features", "Share of distinct neighbours"]


def test_panels_put_the_loss_first_and_accuracies_together():
    rows = [
        {"step": "0", "epoch": "0", "lr": "0.1", "loss": "2.0", "val_probe_acc": "", "knn_200": "", "knn_20": ""},
        {"step": "9", "epoch": "0", "lr": "0.2", "loss": "nan", "val_probe_acc": "40", "knn_200": "50", "knn_20": "60"},
    ]
    charts = panels(rows)
    assert [(c["title"], c["unit"]) for c in charts] == [("Loss", ""), ("Accuracy", "%"), ("Learning rate", "")]
    assert [s["name"] for s in charts[1]["series"]] == ["kNN 20", "kNN 200", "probe, validation"]
    assert charts[0]["series"][0]["points"] == [(0, 2.0)], "JSON has no NaN"
    assert charts[2]["series"][0]["points"] == [(0, 0.1), (9, 0.2)]
    assert panels([]) == []


def test_thinned_keeps_spikes_and_the_order():
    points = [(step, math.sin(step / 500)) for step in range(10_000)]
    points[1234] = (1234, 7.0)
    points[4321] = (4321, -7.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert {(1234, 7.0), (4321, -7.0)} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_metric_title_is_in_words():
    titles = [metric_title(name) for name in ("knn_20", "val_probe_acc", "queue_age")]
    assert titles == ["kNN 20", "probe, validation", "queue age"]
