"""Processes that fail together, as threads: who is named, who prints, who ends with which status."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from utils import peers
from utils.peers import Failure, Peers, signals_end_at_once, watch_children, watch_parent

BROKEN = Failure(2, 2, "a.png is broken; repair it")


class Fleet:
    """Three processes in one; `ended` gets (rank, status) of each that is ended by its thread."""

    def __init__(self, monkeypatch, world=3):
        self.ended: queue.Queue = queue.Queue()
        monkeypatch.setattr(peers, "GRACE", 0.15)
        monkeypatch.setattr(peers, "ANSWER", 5.0)
        self.all = [Peers(rank, world) for rank in range(world)]
        for each in self.all:
            each.leave_at_once = lambda code, each=each: self._leave(each, code)
        port = self.all[0].listen(b"key")
        for each in self.all[1:]:
            each.connect("127.0.0.1", port, b"key")
        for each in self.all:
            assert each._connected.wait(5)

    def _leave(self, process, code):
        self.ended.put((process.rank, code))
        self.close(process)

    def close(self, process):
        """What the system does at the end of a process, whose threads it does not ask."""
        for connection in process._connections:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as s:
                s.shutdown(socket.SHUT_RDWR)

    def kill(self, process):
        process.own = BROKEN  # its threads are gone
        self.close(process)

    def statuses(self, number):
        return dict(self.ended.get(timeout=5) for _ in range(number))


@pytest.fixture
def fleet(monkeypatch):
    fleet = Fleet(monkeypatch)
    yield fleet
    for each in fleet.all:
        each.goodbye()
        fleet.close(each)


def test_failure_of_one_ends_all_with_one_line_that_names_it(fleet, capsys):
    assert fleet.all[2].tell(BROKEN), "the first process has printed it"
    assert fleet.statuses(2) == {0: 2, 1: 2}
    assert capsys.readouterr().err == "error: process 2 of 3: a.png is broken; repair it\n"


def test_failure_of_the_first_process_is_printed_once_and_ends_the_others(fleet, capsys):
    assert fleet.all[0].tell(Failure(0, 1, "KeyError: 'defect'", bug=True))
    assert fleet.statuses(2) == {1: 1, 2: 1}
    assert fleet.all[1].other.bug
    assert capsys.readouterr().err == "error: process 0 of 3: KeyError: 'defect'\n"


def test_process_that_closes_without_a_word_is_named(fleet, capsys):
    fleet.kill(fleet.all[1])
    assert fleet.statuses(2) == {0: 1, 2: 1}
    assert "error: process 1 of 3: ended without a word" in capsys.readouterr().err


def test_second_process_says_that_the_first_was_killed(fleet, capsys):
    fleet.kill(fleet.all[0])
    assert fleet.statuses(2) == {1: 1, 2: 1}
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "error: process 0 of 3: ended without a word" in printed


def test_goodbye_ends_nobody(fleet, capsys):
    for each in reversed(fleet.all):
        each.goodbye()
        fleet.close(each)
    with pytest.raises(queue.Empty):
        fleet.ended.get(timeout=0.3)
    assert capsys.readouterr().err == ""


def test_first_process_that_fails_by_itself_says_its_own_reason(fleet, capsys):
    """All fail alike, and another one is faster: the first process knows more, and finishes its post-mortem."""
    threading.Thread(target=fleet.all[2].tell, args=(BROKEN,), daemon=True).start()
    assert fleet.all[0].heard(5) == BROKEN
    fleet.all[0].tell(Failure(0, 2, "the loss is not finite"))
    assert fleet.statuses(1) == {1: 2}
    assert capsys.readouterr().err == "error: process 0 of 3: the loss is not finite\n"


def test_first_failure_is_the_one_that_is_named(fleet, capsys):
    threading.Thread(target=fleet.all[2].tell, args=(BROKEN,), daemon=True).start()
    assert fleet.all[0].heard(5) == BROKEN
    threading.Thread(target=fleet.all[1].tell, args=(Failure(1, 1, "connection lost"),), daemon=True).start()
    while fleet.ended.get(timeout=5)[0] != 0:  # the second one may be ended before it can tell
        pass
    assert capsys.readouterr().err == "error: process 2 of 3: a.png is broken; repair it\n"


def test_processes_that_all_fail_alike_print_one_line(fleet, capsys):
    for each in fleet.all[1:]:
        each._leaving.set()  # they raise the same error at this moment
    fleet.all[0].tell(Failure(0, 2, "the loss is not finite"))
    fleet.kill(fleet.all[0])
    assert all(each.tell(Failure(each.rank, 2, "the loss is not finite")) for each in fleet.all[1:])
    assert capsys.readouterr().err == "error: process 0 of 3: the loss is not finite\n"


def test_failure_is_not_lost_with_the_first_process(fleet):
    """The first process is killed while another one tells it: that one has to print its reason itself."""
    fleet.all[2]._leaving.set()  # first: it may otherwise notice the death before it tells
    fleet.kill(fleet.all[0])
    assert not fleet.all[2].tell(BROKEN)
    assert fleet.statuses(1) == {1: 1}


def test_signal_of_one_leaves_the_others_time_to_save(fleet):
    assert fleet.all[2].tell(Failure(2, 143, "Stopped by SIGTERM", stop=True))
    assert fleet.all[0].heard(5).code == 143
    with pytest.raises(queue.Empty):
        fleet.ended.get(timeout=0.3)


def test_stranger_without_the_key_is_not_listened_to(monkeypatch, capsys):
    first, stranger = Peers(0, 2), Peers(1, 2)
    port = first.listen(b"key")
    stranger.connect("127.0.0.1", port, b"another")
    time.sleep(0.3)
    assert not first._connected.is_set()
    friend = Peers(1, 2)
    friend.connect("127.0.0.1", port, b"key")
    assert first._connected.wait(5)
    friend.goodbye()
    first.goodbye()
    assert "cannot watch the others" in capsys.readouterr().err


def test_child_that_fails_before_the_group_forms_ends_its_parent(monkeypatch, capsys):
    for script, said in (("exit(2)", ""), ("import os; os.kill(os.getpid(), 9)", "process 1 was ended by SIGKILL")):
        left: queue.Queue = queue.Queue()
        monkeypatch.setattr(peers, "leave_at_once", left.put)
        child = subprocess.Popen([sys.executable, "-S", "-c", script])
        with watch_children([child]):
            assert left.get(timeout=10) == 2
        assert said in capsys.readouterr().err


def test_child_ends_with_its_parent_before_the_group_forms(monkeypatch):
    left: queue.Queue = queue.Queue()
    monkeypatch.setattr(peers, "leave_at_once", left.put)
    watch_parent()  # the first process
    monkeypatch.setenv(peers.FIRST_PROCESS, str(os.getppid()))
    watch_parent()
    with pytest.raises(queue.Empty):
        left.get(timeout=0.3)
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert left.get(timeout=5) == 2


def test_signal_ends_a_process_that_waits_for_the_group():
    signal.signal(signal.SIGTERM, handler := lambda *_: None)
    with signals_end_at_once():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is handler
