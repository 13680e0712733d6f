"""Tests of running a row again: commands that are moved, differences, rows that are not there."""

import json

import pytest

from results import reproduce as module
from results import tables
from results.reproduce import command_lines, differences, find_run, moved
from results.tables import PRETRAIN, Run, command
from utils.errors import UserError

COUNT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--record") + 1])
(folder / "times").open("a").write("1")
scores = {"n": {"value": len((folder / "times").read_text())}}
record = {"kind": "pretraining", "commit": pathlib.Path("commit").read_text(), "scores": scores, "seconds": 1}
(folder / "a.json").write_text(json.dumps(record))
"""


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


def test_row_is_computed_again_on_another_commit_and_once_on_each(tmp_path, monkeypatch):
    """The program prints how often it ran; a record of another commit, or of changes, is not shown as today's."""
    (tmp_path / "main_contrastive.py").write_text(COUNT)
    (tmp_path / "results" / "t").mkdir(parents=True)
    words = ["--output", "trained_models/t", "--run_id", "a", "--record", "results/t"]
    record = {"kind": "pretraining", "argv": words, "scores": {"n": {"value": 0}}, "seconds": 1}
    (tmp_path / "results" / "t" / "a.json").write_text(json.dumps(record))
    monkeypatch.setattr(tables, "LEDGER", tmp_path / "results")
    monkeypatch.setattr(module, "LEDGER", tmp_path / "results")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setitem(module.TABLES, "t", lambda: iter([Run("t", "a", (command(PRETRAIN, " ".join(words)),))]))
    found = []
    for commit in ("1" * 40, "1" * 40, "2" * 40, "2" * 40 + "+changes", "2" * 40 + "+changes"):
        (tmp_path / "commit").write_text(commit)
        monkeypatch.setattr(module, "provenance", lambda commit=commit: {"commit": commit})
        found.append(module.reproduce("t", "a")[1].split()[2])
    assert found == ["1.000", "1.000", "2.000", "3.000", "4.000"]
