"""Tests of running a row again: commands that are moved, differences, rows that are not there."""

import json

import pytest

from results import reproduce as module
from results import tables
from results.reproduce import command_lines, differences, find_run, moved
from results.tables import PRETRAIN, Run, command
from utils.errors import UserError


def test_command_is_moved_to_other_folders(tmp_path):
    words = ["digits", "--teacher_weights", "trained_models/methods/simclr-s0", "--output", "trained_models/methods",
             "--record", "results/methods"]  # fmt: skip
    found = moved(words, tmp_path)
    assert found[2] == "trained_models/reproduced/methods/simclr-s0"
    assert found[3:] == ["--output", "trained_models/reproduced/methods", "--record", str(tmp_path)]


def test_differences_are_printed_per_score(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    for table, knn in (("t", 40.0), ("again", 41.5)):
        (tmp_path / table).mkdir()
        record = {"kind": "pretraining", "scores": {"knn_20": {"value": knn}, "images_per_second": {"value": 5}},
                  "seconds": 9.0}  # fmt: skip
        (tmp_path / table / "run.json").write_text(json.dumps(record))
    first, seconds = differences("t", "run", tmp_path / "again")
    assert first.split() == ["knn_20", "40.000", "41.500", "+1.500"]
    assert seconds.split()[0] == "seconds"


def test_commands_of_a_row_are_lines_for_a_shell():
    (line,) = command_lines("search", "simclr-lr0.001-wd0.01")
    assert line.startswith("python3 main_contrastive.py cifar10 test_resnet --stem imagenet ")
    assert "--method simclr" in line
    (line,) = command_lines("peers", "lightly-simclr-s0")
    assert line.startswith("python3 -m bench.peers simclr --peer lightly ")


def test_row_that_is_unknown_or_not_recorded_is_refused(monkeypatch):
    run = Run("methods", "simclr-s0", (command(PRETRAIN, "digits resnet18 --run_id nothing"),))
    monkeypatch.setitem(module.TABLES, "methods", lambda: iter([run]))
    with pytest.raises(UserError, match="no row 'simclr-s1'.*simclr-s0"):
        find_run("methods", "simclr-s1")
    with pytest.raises(UserError, match="no record of methods/simclr-s0 yet"):
        module.reproduce("methods", "simclr-s0")
