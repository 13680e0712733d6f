"""Faults at random moments."""

import json
import random

import pytest

from tests.torture.random_faults import DAMAGE, EPOCHS, FAULTS, Trial, damage, random_faults
from tests.torture.rows import Torture


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_leaves_the_checkpoint_before_and_needs_one(tmp_path, kind):
    (tmp_path / "last.ckpt").write_bytes(bytes(range(64)))
    assert not damage(tmp_path, kind, random.Random(0)), "the only checkpoint stays"
    assert (tmp_path / "last.ckpt").read_bytes() == bytes(range(64))
    (tmp_path / "previous.ckpt").write_bytes(b"older")
    assert damage(tmp_path, kind, random.Random(0))
    assert not (tmp_path / "last.ckpt").exists() or (tmp_path / "last.ckpt").read_bytes() != bytes(range(64))
    assert (tmp_path / "previous.ckpt").read_bytes() == b"older"


def test_choices_of_a_trial_are_a_function_of_seed_and_number(tmp_path):
    torture = Torture(tmp_path)
    one, same, other = (Trial(torture, *key) for key in ((1, 2), (1, 2), (2, 1)))
    assert one.setting == same.setting
    draws = [[trial.rng.random() for _ in range(3)] for trial in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]


def test_random_faults_count_and_name_what_failed(tmp_path, monkeypatch, capsys):
    def go(self):
        self.counts.update(["kill -9", "SIGTERM"])
        self.seconds = 60.0
        self.broken = ["state_dict"] if self.name.endswith("run 1") else []
        return self

    ticks = iter([0.0, 1.0, 1.0, 999.0])
    monkeypatch.setattr("tests.torture.random_faults.time.monotonic", lambda: next(ticks))
    monkeypatch.setattr(Trial, "go", go)
    assert random_faults(tmp_path, tmp_path, 1, 7, 1)
    printed = capsys.readouterr().out
    assert "2 runs, 4 faults (2 SIGTERM, 2 kill -9)" in printed
    assert "1 equal to the bit, 1 broken" in printed
    assert "seed 7, run 1" in printed.splitlines()[-1]
    content = json.loads((tmp_path / "random.json").read_text())
    assert content["faults"] == {"kill -9": 2, "SIGTERM": 2}


@pytest.mark.slow
def test_run_through_random_faults_equals_the_whole_run(tmp_path):
    trial = Trial(Torture(tmp_path, epochs=EPOCHS), 8, 0).go()
    assert trial.broken == []
    assert trial.counts
    assert set(trial.counts) <= set(FAULTS) | set(DAMAGE)
