"""Tests of filling the ledger: order, needs, failures, the deadline, and what a stop leaves."""

import json
import os
import shutil
import signal
import sys
import threading
import time

import pytest

from results import run, tables
from results.run import Filling, fill
from results.tables import Command, Run
from utils.errors import Interrupted

WRITE = """
import json, pathlib, signal, sys, time
words = sys.argv[1:]
if "--sleep" in words:
    time.sleep(60)
if "--slow-stop" in words:
    def stop(*_):
        time.sleep(1.5)
        pathlib.Path("saved").touch()
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    pathlib.Path("started").touch()
    time.sleep(60)
if "--fail" in words:
    sys.exit(3)
folder = pathlib.Path("results/t")
folder.mkdir(parents=True, exist_ok=True)
name = words[words.index("--run_id") + 1]
models = pathlib.Path("trained_models/t") / name
models.mkdir(parents=True, exist_ok=True)
(models / "times").open("a").write("1")
if "--cluster_output" in words:
    clusters = pathlib.Path(words[words.index("--cluster_output") + 1])
    if clusters.exists():
        sys.exit(2)
    clusters.touch()
record = {"kind": "pretraining", "argv": words, "scores": {"knn_20": {"value": 40.0}}, "seconds": 5}
if "--record" in words:
    (folder / f"{name}.json").write_text(json.dumps(record))
"""


@pytest.fixture(autouse=True)
def another_root(tmp_path, monkeypatch):
    """A folder with commands that write a record and nothing else."""
    monkeypatch.setattr(tables, "LEDGER", tmp_path / "results")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setitem(tables.TABLES, "t", lambda: iter(()))
    for program in ("main_contrastive.py", "main_linear.py"):
        (tmp_path / program).write_text(WRITE)
    assert sys.executable
    return tmp_path


def one(name, *words, needs=()):
    return Run("t", name, (Command("main_contrastive.py", ("--run_id", name, "--record", "results/t", *words)),), needs)


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


def test_files_that_are_gone_are_made_again_once_and_without_a_record(another_root):
    fill(lambda: [one("first")], 1, 1)
    record = another_root / "results" / "t" / "first.json"
    folder = another_root / "trained_models" / "t" / "first"
    written = record.stat().st_mtime_ns
    runs = [one(name, needs=("t/first",)) for name in ("second", "third", "fourth")]
    shutil.rmtree(folder)
    fill(lambda: runs, 1, 3)
    assert (folder / "times").read_text() == "1", "three runs need it, one makes it"
    assert record.stat().st_mtime_ns == written
    assert not list(folder.parent.glob("*.incomplete"))
    folder.with_suffix(".incomplete").touch()
    fill(lambda: [one("fifth", needs=("t/first",))], 1, 1)
    assert (folder / "times").read_text() == "11", "what was cut off is made to its end"


def test_a_run_whose_files_are_gone_makes_them_before_its_other_commands(another_root):
    both = [Command(program, ("--run_id", name, "--record", "results/t"))
            for program, name in (("main_contrastive.py", "a"), ("main_linear.py", "a-evaluated"))]  # fmt: skip
    fill(lambda: [Run("t", "a", tuple(both[:1]))], 1, 1)
    shutil.rmtree(another_root / "trained_models")
    fill(lambda: [Run("t", "a", tuple(both))], 1, 1)
    assert (another_root / "trained_models" / "t" / "a" / "times").is_file()
    assert tables.read_record("t", "a-evaluated")


def clusters_and_student(output="trained_models/t/clusters.npz"):
    """Runs as of ClusterFit: of a teacher, and of its clusters with their student."""
    words = ("--run_id", "clusters", "--record", "results/t", "--cluster_output", output)
    cluster = Command("main_linear.py", words)
    student = Command("main_contrastive.py", ("--run_id", "student", "--record", "results/t"))
    return [one("teacher"), Run("t", "student", (cluster, student), ("t/teacher",))]


def test_files_that_are_gone_are_made_again_with_all_that_they_build_on(another_root, monkeypatch):
    """What is wanted builds on the student, that one on the clusters, and these on the teacher."""
    runs = clusters_and_student()
    monkeypatch.setitem(tables.TABLES, "t", lambda: iter(runs))
    models = another_root / "trained_models"
    assert fill(lambda: runs, 1, 1) == 0
    evaluations = [
        Run("t", name, (Command("main_linear.py", ("--run_id", name, "--record", "results/t")),), ("t/student",))
        for name in ("first", "second")
    ]
    for evaluation, gone in zip(evaluations, (models, models / "t" / "clusters.npz"), strict=True):
        if gone == models:
            shutil.rmtree(models)
        else:
            gone.unlink()
            shutil.rmtree(models / "t" / "student")
        assert fill(lambda run=evaluation: [run], 1, 1) == 0
        found = {path.name for path in (models / "t").iterdir() if path.suffix != ".log"}
        assert {"teacher", "clusters", "clusters.npz", "student"} <= found
    assert not list(models.rglob("*.incomplete"))


def test_clusters_of_a_command_that_was_cut_off_are_computed_again(another_root):
    """The file is there and the record is not: the command itself would refuse to write over it."""
    runs = clusters_and_student()
    (another_root / "trained_models" / "t").mkdir(parents=True)
    (another_root / "trained_models" / "t" / "clusters.npz").touch()
    assert fill(lambda: runs, 1, 1) == 0
    assert tables.read_record("t", "student")


def test_failed_runs_are_counted():
    assert fill(lambda: [one("a", "--fail"), one("b"), one("c", "--fail")], 1, 1) == 2


def test_a_worker_waits_for_a_run_that_another_one_makes_ready(another_root, monkeypatch):
    """Two runs need a third one: when it is done, both workers go on."""
    together = threading.Barrier(2, timeout=20)
    execute = Filling.execute

    def execute_together(self, words, log):
        if log.stem != "first":
            together.wait()
        return execute(self, words, log)

    monkeypatch.setattr(Filling, "execute", execute_together)
    runs = [one("first"), *(one(name, needs=("t/first",)) for name in ("second", "third"))]
    assert fill(lambda: runs, 1, 2) == 0
    assert all(run.is_done() for run in runs)


def test_a_run_is_asked_to_stop_at_the_deadline(capsys):
    started = time.time()
    fill(lambda: [one("long", "--sleep"), one("next")], 1 / 60, 1)
    assert time.time() - started < 20
    assert not capsys.readouterr().out
    assert tables.read_record("t", "next") is None, "nothing new begins after the deadline"


def test_ctrl_c_waits_until_what_runs_has_saved_its_state(another_root):
    def interrupt():
        while not (another_root / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="the same command goes on") as stopped:
        fill(lambda: [one("long", "--slow-stop"), one("next")], 1, 1)
    assert stopped.value.code == 130
    assert (another_root / "saved").exists()
    assert tables.read_record("t", "next") is None


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
