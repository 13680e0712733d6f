"""DDP whose processes fail together; tests/application/test_failing_together.py has whole runs."""

import os

import pytest

from runs import strategy
from runs.strategy import FailingTogetherDDP
from utils.errors import Interrupted, UserError
from utils.peers import FIRST_PROCESS


@pytest.fixture
def ddp(monkeypatch):
    monkeypatch.setenv(FIRST_PROCESS, "4711")  # so that the variable is put back
    monkeypatch.delenv(FIRST_PROCESS)
    return FailingTogetherDDP(broadcast_buffers=False)


def test_processes_that_it_starts_know_the_first_one(ddp):
    assert os.environ[FIRST_PROCESS] == str(os.getpid())
    os.environ[FIRST_PROCESS] = "7"
    FailingTogetherDDP()
    assert os.environ[FIRST_PROCESS] == "7", "a process that was started keeps it"


def test_error_is_told_before_lightning_cleans_up_and_a_signal_is_not(ddp, monkeypatch):
    announced: list[BaseException] = []
    monkeypatch.setattr(strategy, "announce", announced.append)
    error = UserError("a.png is broken")
    ddp.on_exception(error)
    ddp.on_exception(Interrupted("Interrupted at step 8"))
    assert announced == [error]
