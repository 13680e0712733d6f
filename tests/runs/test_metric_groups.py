"""Names of metrics on dashboards."""

import pytest

from runs.metric_groups import best_and_last, grouped


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("loss", "train/loss"),
        ("lr", "train/lr"),
        ("probe_acc", "train/probe_acc"),
        ("val_probe_acc", "val/probe_acc"),
        ("knn_20", "knn/20"),
        ("nn_label_acc", "queue/nn_label_acc"),
        ("queue_age", "queue/age"),
        ("quality/rankme", "quality/rankme"),
        ("images_per_second", "time/images_per_second"),
        ("data_wait_fraction", "time/data_wait_fraction"),
        ("epoch", "epoch"),
    ],
)
def test_grouped_names(name, shown):
    assert grouped(name) == shown


def test_best_and_last_leave_out_what_is_missing_or_not_finite():
    rows = [
        {"step": "0", "epoch": "0", "loss": "2.0", "knn_20": "", "lr": "0.1"},
        {"step": "1", "epoch": "0", "loss": "1.0", "knn_20": "80.0", "lr": "0.2"},
        {"step": "2", "epoch": "1", "loss": "nan", "knn_20": "70.0", "lr": "0.3"},
    ]
    assert best_and_last(rows) == {
        "last/train/loss": 1.0, "last/knn/20": 70.0, "last/train/lr": 0.3, "best/train/loss": 1.0, "best/knn/20": 80.0,
    }  # fmt: skip
