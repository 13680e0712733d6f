"""Weights & Biases as a logger that cannot stop a run."""

import json
import socket
import time

import pytest
from PIL import Image

import runs.dashboard as dashboard
from tests.helpers.dashboard_files import history, records, summary
from utils.plan import DashboardConfig
from utils.scores import ResultRow, Score

ONLINE = DashboardConfig(True, "name", "project", None, False)
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Page:
    """A client that fails from some call on."""

    def __init__(self, good=0):
        self.calls, self.good = [], good

    def log(self, metrics, step):
        self.calls.append(step)
        if len(self.calls) > self.good:
            raise OSError(28, "No space left on device")


def opened(monkeypatch, folder, *outcomes, config=ONLINE):
    """A dashboard whose client has these outcomes when it is opened; and the modes that it was opened in."""
    modes, left = [], list(outcomes)
    monkeypatch.setattr(dashboard, "_close_client", lambda: None)

    def open_page(self, offline):
        modes.append("offline" if offline else "online")
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        self._page = outcome

    monkeypatch.setattr(dashboard.Dashboard, "_open", open_page)
    return dashboard.Dashboard(config, {}, folder, resumed=False), modes


def test_why_offline_names_the_missing_login():
    assert "no login" in dashboard.why_offline()


def test_why_offline_names_the_server_that_cannot_be_reached(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        monkeypatch.setattr(dashboard, "_settings", lambda: (f"http://user:secret@127.0.0.1:{port}", True))
        reason = dashboard.why_offline()
    assert f"no network (127.0.0.1:{port}" in reason
    assert "secret" not in reason


def test_why_offline_asks_the_proxy_where_there_is_one(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(dashboard, "_settings", lambda: ("https://example.invalid", True))
        assert dashboard.why_offline() is None


def test_page_that_cannot_be_opened_is_opened_offline_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(dashboard, "why_offline", lambda: None)
    board, modes = opened(monkeypatch, tmp_path, TimeoutError(f"no answer to {KEY}\nmore"), Page(good=9))
    board.log_metrics({"loss": 1.0}, 0)
    assert modes == ["online", "offline"]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "no answer to ***; the run is logged offline" in printed


def test_command_of_the_upload_quotes_a_folder_with_a_space(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my runs"
    monkeypatch.setattr(dashboard, "why_offline", lambda: "no network")
    opened(monkeypatch, folder, Page())
    assert f"upload it later: wandb sync '{folder}'/wandb/offline-run-*" in capsys.readouterr().out


def test_asked_for_offline_nothing_is_tried(tmp_path, monkeypatch, capsys):
    config = DashboardConfig(True, "name", "project", None, True)
    assert opened(monkeypatch, tmp_path, Page(), config=config)[1] == ["offline"]
    assert capsys.readouterr().out == ""


def test_error_of_the_client_is_said_once_and_the_dashboard_is_off(tmp_path, monkeypatch, capsys):
    page = Page(good=1)
    board, _ = opened(monkeypatch, tmp_path, page)
    capsys.readouterr()
    for step in range(5):
        board.log_metrics({"loss": 1.0}, step)
    board.log_pictures([tmp_path / "a.png"], 5)
    board.finalize("success")
    assert page.calls == [0, 1]
    printed = capsys.readouterr().out
    assert printed.count("Weights & Biases is off from here") == 1
    assert "No space left" in printed


@pytest.fixture
def client(monkeypatch):
    """The real client, quiet, which ends with the test."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


def write_run(client, folder, resumed, first):
    """A run of two steps from `first` on, by the real client, as training writes it."""
    config = DashboardConfig(True, "nnclr-digits-seed0", "p", None, True)
    board = dashboard.Dashboard(config, {"lr": 0.3}, folder, resumed)
    for step in (first, first + 1):
        board.log_metrics({"loss": float(step), "lr": 0.1, "nn_distinct": 1.0, "epoch": 0}, step)
    board.log_metrics({"knn_20": 90.0 - first, "val_probe_acc": 5.0, "quality/rankme": 7.0}, first + 1)
    board.log_pictures([folder / "curves.png"], first + 1)
    rows = [ResultRow(title, "resnet18", "nnclr", "digits", [Score("knn_20", v)]) for title, v in (("a", 1), ("b", 2))]
    if not first:
        board.log_table(rows)
    board.finalize("success")
    client.finish()
    client.teardown()  # the service that writes the file ends with it: nothing is left in its buffers


def test_real_client_writes_groups_table_pictures_backbone_and_summary_and_goes_on_when_resumed(tmp_path, client):
    folder = tmp_path / "ab12"
    folder.mkdir()
    (folder / "backbone.safetensors").write_bytes(b"weights")
    (folder / "metrics.csv").write_text("step,loss,knn_20,lr\n0,3.0,,0.1\n1,2.0,90.0,0.1\n2,2.5,88.0,0.1\n")
    Image.new("RGB", (4, 4)).save(folder / "curves.png")
    write_run(client, folder, resumed=False, first=0)
    time.sleep(1.1)  # the client names its folder by the second
    write_run(client, folder, resumed=True, first=2)
    first, second = sorted((folder / "wandb").glob("offline-run-*-ab12"))
    rows = history(first)
    assert rows[0]["train/loss"] == 0.0
    assert rows[1] | {"knn/20": 90.0, "val/probe_acc": 5.0, "quality/rankme": 7.0, "queue/nn_distinct": 1.0} == rows[1]
    assert rows[1]["curves/_type"] == "image-file"
    (table,) = (folder / first / "files" / "media" / "table").glob("evaluation_*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["run", "backbone", "method", "pretrained_on", "knn_20"],
        "data": [[title, "resnet18", "nnclr", "digits", value] for title, value in (("a", 1), ("b", 2))],
    }
    assert [step for step in history(second) if "train/loss" in history(second)[step]] == [2, 3]
    assert summary(second) | {"best/train/loss": 2.0, "last/train/loss": 2.5, "best/knn/20": 90.0} == summary(second)
    assert "best/train/lr" not in summary(second)
    for run in (first, second):
        (about,) = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"]
        assert (about.run_id, about.display_name, about.project) == ("ab12", "nnclr-digits-seed0", "p")
        requests = [record.artifact for record in records(run) if record.WhichOneof("record_type") == "artifact"]
        (backbone,) = [artifact for artifact in requests if artifact.type == "model"]
        (file,) = backbone.manifest.contents
        assert (backbone.name, file.local_path) == ("backbone-ab12", str(folder / "backbone.safetensors"))
