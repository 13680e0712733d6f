"""Whole runs: broken ones are caught in time, healthy ones are not accused; what stops a run keeps its checkpoint."""

import json

import pytest

import main_contrastive
from tests.alarms import BROKEN, HEALTHY, SEEDS, caught, run, run_broken
from tests.helpers.commands import words
from tests.helpers.runs import checkpoint, refused
from utils.files import read_metrics

pytestmark = pytest.mark.usefixtures("no_embedding")


@pytest.mark.slow
@pytest.mark.parametrize("title", BROKEN)
def test_broken_run_is_caught_in_time(tmp_path, title):
    alarms, numbers = run_broken(title, tmp_path)
    assert caught(title, alarms), (alarms, numbers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", HEALTHY)
def test_healthy_run_is_not_accused(tmp_path, case, seed):
    alarms, numbers = run(case, tmp_path, seed)
    assert alarms == [], numbers


def test_alarm_that_stops_a_run_leaves_the_last_checkpoint(tmp_path, few, monkeypatch):
    """An alarm in the second epoch of 5 steps, and a leak before the first step."""
    monkeypatch.setattr("runs.alarms.Alarms._gradient_ratio", lambda self: 99.0 if self._step == 7 else 1.0)
    argv = ["custom", *words("simclr", tmp_path, *few, "--on_alarm", "stop", "--run_id", "r")[1:]]
    message = refused(argv)
    assert "gradient explosion at step 7: " in message
    assert "the last checkpoint is untouched" in message
    assert checkpoint(tmp_path / "r")["global_step"] == 5
    assert [int(r["step"]) for r in read_metrics(tmp_path / "r" / "metrics.csv") if r["loss"]][-1] == 6
    (alarm,) = json.loads((tmp_path / "r" / "alarms.json").read_text())["alarms"]
    assert (alarm["name"], alarm["step"], alarm["value"]) == ("gradient explosion", 7, 99.0)
    main_contrastive.main(["--resume", str(tmp_path / "r"), "--on_alarm", "warn"])
    assert checkpoint(tmp_path / "r")["global_step"] == 15
    (tmp_path / "images" / "val" / "c0" / "0.png").write_bytes(
        (tmp_path / "images" / "train" / "c1" / "3.png").read_bytes()
    )
    message = refused([*argv, "--run_id", "leak"])
    assert (
        "validation images among the training images before training: of 24 validation images, 1 are equal" in message
    )
    assert not (tmp_path / "leak" / "last.ckpt").exists()
