"""Weights & Biases."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.helpers.commands import start, words
from tests.helpers.dashboard_files import history, records, scalars, summary
from tests.torture.launch import run_to_end
from utils.files import read_metrics

GROUPS = {"train", "val", "knn", "quality", "time"}
pytestmark = pytest.mark.usefixtures("no_embedding")


def test_wandb_offline_gets_numbers_and_pictures(tmp_path, few, monkeypatch):
    """The dashboard gets the numbers and the pictures, without a network and without leaving the run folder."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--wandb", "--offline", "--run_id", "r", "--name", "mine"]
    argv += ["--tensorboard"]
    ended = run_to_end([*argv, "--project", "p"], tmp_path)
    assert ended.statuses == [0], ended.text
    (offline,) = (tmp_path / "r" / "wandb").glob("offline-run-*-r")
    logged = {p.name.split("_")[0] for p in (offline / "files" / "media" / "images").glob("*.png")}
    assert logged == {"curves", "neighbours", "embedding"}
    rows = history(offline)
    assert {name.partition("/")[0] for row in rows.values() for name in row} >= GROUPS
    assert [step for step, row in sorted(rows.items()) if "curves/path" in row] == [9, 14], "at each evaluation"
    assert summary(offline).keys() >= {"best/knn/5", "last/knn/5", "best/train/loss"}
    assert [record.artifact.name for record in records(offline) if record.HasField("artifact")] == ["backbone-r"]
    events = scalars(tmp_path / "r" / "tensorboard")
    assert events.keys() >= {"train/loss", "knn/5", "val/probe_acc", "quality/rankme", "picture curves"}
    losses = {
        int(row["step"]): float(row["loss"]) for row in read_metrics(tmp_path / "r" / "metrics.csv") if row["loss"]
    }
    assert events["train/loss"] == pytest.approx(losses)


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    """A home without a login, and no settings of the dashboard."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)


def trained(tmp_path, few, *more):
    """(seconds, output) of a run of one step in the folder r."""
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--knn_every", "0", "--run_id", "r"]
    ended = run_to_end([*argv, "--wandb", *more], tmp_path)
    assert ended.statuses == [0], ended.text
    assert "Traceback" not in ended.text
    return ended.seconds, ended.text


def assert_offline(tmp_path, printed, reason):
    """One line says why; the run is on disk; no folder is empty."""
    (line,) = re.findall("note: Weights & Biases.*", printed)
    assert reason in line, line
    assert "wandb sync" in line
    (offline,) = (tmp_path / "r" / "wandb").glob("offline-run-*-r")
    assert any(offline.glob("*.wandb"))


def test_run_without_a_login_goes_on_offline(tmp_path, few, no_login):
    seconds, printed = trained(tmp_path, few)
    assert_offline(tmp_path, printed, "no login")
    assert seconds < 60


def test_run_without_a_network_goes_on_offline(tmp_path, few, no_login, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    seconds, printed = trained(tmp_path, few)
    assert_offline(tmp_path, printed, "no network")
    assert "0123456789" not in printed
    assert seconds < 60


@pytest.mark.slow  # the client waits for a minute
def test_run_whose_server_never_answers_goes_on_offline(tmp_path, few, no_login, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        seconds, printed = trained(tmp_path, few)
    assert_offline(tmp_path, printed, "the run is logged offline")
    assert "0123456789" not in printed
    assert seconds < 100


def children(pid):
    """Processes below a process, itself left out."""
    below = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            below += [int(child), *children(child)]
    return below


@pytest.mark.slow  # `make torture` kills the client too
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the client's process")
def test_death_of_the_client_does_not_end_the_run(tmp_path, few, no_login):
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--epochs", "20", "--knn_every", "0", "--run_id", "r"]
    process = start(["main_contrastive.py", *argv, "--wandb", "--offline"])
    metrics, deadline = tmp_path / "r" / "metrics.csv", time.time() + 60
    while not (metrics.exists() and metrics.stat().st_size > 300) and time.time() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    clients = [p for p in children(process.pid) if "wandb-core" in Path(f"/proc/{p}/cmdline").read_text()]
    assert clients
    for client in clients:
        os.kill(client, signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert printed.count("Weights & Biases is off from here") == 1, printed
    assert "done: " in printed
    assert "Traceback" not in printed
