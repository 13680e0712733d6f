"""Weights & Biases as a logger that cannot stop a run."""

import socket

import pytest

import runs.dashboard as dashboard
from utils.plan import DashboardConfig

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

    def log_metrics(self, metrics, step):
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
    board.log_pictures([tmp_path / "a.png"])
    board.finalize("success")
    assert page.calls == [0, 1]
    printed = capsys.readouterr().out
    assert printed.count("Weights & Biases is off from here") == 1
    assert "No space left" in printed
