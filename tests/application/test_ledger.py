"""Test that pretraining and evaluation add to a ledger what is needed to run them again."""

import json

import pytest

import main_contrastive
import main_linear
from tests.helpers.commands import TINY
from utils.files import read_metrics


def test_commands_record_what_they_computed(tmp_path):
    ledger = tmp_path / "ledger"
    shared = ["--output", str(tmp_path), "--record", str(ledger), "--seed", "3"]
    argv = [*TINY, "--method", "simclr", "--epochs", "1", "--batch_size", "512", "--hidden_mlp", "8", "--proj_dim", "8",
            "--knn_every", "1", "--log_every", "1", "--run_id", "run", *shared]  # fmt: skip
    main_contrastive.main(argv)
    record = json.loads((ledger / "run.json").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (record["kind"], record["argv"], record["seed"]) == ("pretraining", argv, 3)
    assert record["scores"]["knn_20"]["value"] == summary["knn_20"]
    assert record["plan"]["schedule"]["total_steps"] == 2
    speeds = [row["images_per_second"] for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    (speed,) = [float(speed) for speed in speeds if speed]
    assert record["seconds"] == pytest.approx(1024 / speed, abs=0.06)
    words = ["digits", TINY[1], "--pretrained_feature_extractor", str(tmp_path / "run"), "--evaluation", "knn",
             "--baselines", "--num_workers", "0", "--run_id", "evaluated", *shared]  # fmt: skip
    main_linear.main(words)
    evaluated = json.loads((ledger / "evaluated.json").read_text())
    assert (evaluated["kind"], evaluated["argv"], evaluated["seed"]) == ("evaluation", words, 3)
    assert list(evaluated["rows"]) == ["raw pixels", f"{TINY[1]}, untrained", f"{TINY[1]}, simclr"]
    assert evaluated["data"] == record["data"]
    pretrained = evaluated["rows"][f"{TINY[1]}, simclr"]["scores"]["knn_20"]
    assert pretrained["value"] == pytest.approx(summary["knn_20"], abs=0.3)
    assert evaluated["seconds"] > 0
