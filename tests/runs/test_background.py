"""The copy of the state, and the thread that writes it."""

import os
import signal
import sys
import threading

import pytest
import torch
from torch import nn

from runs.background import BackgroundWriter, copy_to_cpu
from tests.helpers.runs import equal


def fail():
    raise OSError("no")


def test_copy_is_equal_and_shares_no_memory():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    state = {"network": network.state_dict(), "optimizers": [optimizer.state_dict()], "loops": {"a": (1, [2])}}
    copied, again = copy_to_cpu(state), copy_to_cpu(state)
    assert equal(copied, state)
    assert copied["network"]._metadata == network.state_dict()._metadata
    assert copied["network"]["0.weight"].stride() == network[0].weight.stride()
    assert not any(v.requires_grad for v in copied["network"].values())
    optimizer.step()
    state["loops"]["a"][1].append(3)
    state["optimizers"][0]["param_groups"][0]["lr"] = 7.0
    assert not equal(copied, state)
    assert equal(copied, again)


def test_jobs_are_done_in_their_order_by_another_thread():
    writer, done = BackgroundWriter(), []
    writer.start(*[lambda i=i: done.append((i, threading.current_thread().name)) for i in range(3)])
    assert writer.wait() is None
    assert done == [(i, "checkpoint writer") for i in range(3)]
    assert writer.is_idle


def test_failure_is_told_and_what_is_left_is_tried_again():
    writer, done, full = BackgroundWriter(), [], [True]
    writer.start(lambda: done.append(1), lambda: fail() if full else done.append(2), lambda: done.append(3))
    assert writer.wait() == "cannot save (OSError: no)"
    assert writer.retry() == "cannot save (OSError: no)"
    full.clear()
    assert writer.retry() is None
    assert writer.retry() is None
    assert done == [1, 2, 3]
    writer.start(fail)
    writer.clear()
    assert writer.wait() is None
    assert writer.retry() is None, "a cleared save is forgotten"


@pytest.mark.skipif(sys.platform == "win32", reason="no timer signals")
def test_wait_that_a_signal_ends_does_not_take_the_save_for_done():
    """A Ctrl-C while a save is awaited begins another save, which must not write the same file beside the first one."""
    writer, go_on, done = BackgroundWriter(), threading.Event(), []
    writer.start(lambda: done.append(go_on.wait(5)))
    before = signal.signal(signal.SIGALRM, lambda *_: fail())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(OSError, match="no"):
            writer.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not writer.is_idle
    threading.Timer(0.05, go_on.set).start()
    assert writer.wait() is None
    assert done == [True]
    assert writer.is_idle


def test_system_without_a_thread_left_writes_here(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    writer, done = BackgroundWriter(), []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    writer.start(lambda: done.append(1))
    assert done == [1]
    assert writer.wait() is None
    if (child := os.fork()) == 0:  # nothing waits for a thread that never began
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("begins", [False, True], ids=["before", "after"])
def test_save_that_a_signal_ends_as_its_thread_starts_is_not_awaited_forever(monkeypatch, begins):
    start, done = threading.Thread.start, []

    def start_and_fail(self):
        if begins:
            start(self)
        raise KeyboardInterrupt

    writer = BackgroundWriter()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_fail)
        with pytest.raises(KeyboardInterrupt):
            writer.start(lambda: done.append(1))
    assert writer._finished.wait(5)
    assert done == [] if writer.failure else [1], "what is told as failed was not done"
    writer.retry()
    assert done == [1]
    assert writer.wait() is None


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forked_process_finds_no_lock_of_the_writer_taken():
    writer, lock, taken = BackgroundWriter(), threading.Lock(), threading.Event()

    def write():
        with lock:
            taken.set()
            threading.Event().wait(0.2)

    writer.start(write)
    taken.wait()
    if (child := os.fork()) == 0:
        os._exit(0 if lock.acquire(timeout=1) else 1)
    assert os.waitpid(child, 0)[1] == 0
