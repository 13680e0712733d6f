"""Tests of filling the ledger: order, needs, failures, the deadline, and what a stop leaves."""

import json
import sys
import time

import pytest

from results import run, tables
from results.run import Filling, fill
from results.tables import Command, Run

WRITE = """
import json, pathlib, sys, time
words = sys.argv[1:]
if "--sleep" in words:
    time.sleep(60)
if "--fail" in words:
    sys.exit(3)
folder = pathlib.Path("results/t")
folder.mkdir(parents=True, exist_ok=True)
record = {"argv": words, "scores": {"knn_20": {"value": 40.0}}, "seconds": 5}
(folder / f"{words[words.index('--run_id') + 1]}.json").write_text(json.dumps(record))
"""


@pytest.fixture(autouse=True)
def another_root(tmp_path, monkeypatch):
    """A folder with commands that write a record and nothing else."""
    monkeypatch.setattr(tables, "LEDGER", tmp_path / "results")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    for program in ("main_contrastive.py", "main_linear.py"):
        (tmp_path / program).write_text(WRITE)
    assert sys.executable
    return tmp_path


def one(name, *words, needs=()):
    return Run("t", name, (Command("main_contrastive.py", ("--run_id", name, *words)),), needs)


def test_runs_are_taken_in_their_order_when_what_they_need_is_there(another_root, capsys):
    runs = [one("second", needs=("t/first",)), one("first"), one("broken", "--fail"), one("third")]
    fill(lambda: runs, 1, 1)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["t first", "t second", "t broken", "t third"]
    assert "ended with 3; see trained_models/t/broken.log" in printed[2]
    record = json.loads((another_root / "results" / "t" / "first.json").read_text())
    assert record["argv"][-2:] == ["--resume", "auto"]
    fill(lambda: [one("first")], 1, 1)
    assert not capsys.readouterr().out, "what the ledger has is not run again"


def test_a_run_is_asked_to_stop_at_the_deadline(capsys):
    started = time.time()
    fill(lambda: [one("long", "--sleep"), one("next")], 1 / 60, 1)
    assert time.time() - started < 20
    assert not capsys.readouterr().out
    assert tables.read_record("t", "next") is None, "nothing new begins after the deadline"


def test_a_peer_is_done_when_it_was_trained_and_evaluated(another_root):
    peer = Run("t", "p", (Command(tables.PEER, ("--run_id", "p")),))
    (another_root / "results" / "t").mkdir(parents=True)
    for name in ("p", "p-evaluated"):
        assert not peer.is_done()
        (another_root / "results" / "t" / f"{name}.json").write_text('{"kind": "peer"}')
    assert peer.is_done()


def test_two_workers_never_take_the_same_run():
    filling = Filling(lambda: [one("a"), one("b")], time.time() + 60)
    assert [filling.take().name, filling.take().name, filling.take()] == ["a", "b", None]
