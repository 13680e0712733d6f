"""Errors of one line, and suggestions for misspelt names."""

import io
import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.helpers.commands import ROOT
from utils.distributed import ProcessError
from utils.errors import STOP_SIGNALS, Interrupted, UserError, announce, did_you_mean, leave_on_signals, run_cli
from utils.peers import Failure


@pytest.fixture(autouse=True)
def _handlers_put_back():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_run_cli_prints_a_users_mistake_on_one_line_with_status_2(capsys):
    def fail(argv):
        raise UserError("Original Traceback:\n  File x\nutils.errors.UserError: a.png is broken; repair it")

    with pytest.raises(SystemExit) as e:
        run_cli(fail)
    assert e.value.code == 2
    assert capsys.readouterr().err == "error: a.png is broken; repair it\n"


def test_run_cli_ends_an_interrupted_run_with_status_130(capsys):
    def interrupt(argv):
        raise Interrupted("Interrupted at step 8. Resume with: COMMAND")

    with pytest.raises(SystemExit) as e:
        run_cli(interrupt)
    assert e.value.code == 130
    assert "Resume with: COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_run_cli_ends_with_one_line_and_the_status_of_a_signal(capsys, number):
    with pytest.raises(SystemExit) as e:
        run_cli(lambda argv: signal.raise_signal(number))
    assert e.value.code == 128 + number
    assert capsys.readouterr().err == f"\nStopped by {number.name}; unfinished work was not saved\n"


@pytest.mark.parametrize(("number", "statuses"), [(signal.SIGTERM, (0, 2)), (signal.SIGUSR1, (0, 2)),
                                                  (signal.SIGINT, (-signal.SIGINT,) * 2)])  # fmt: skip
def test_signal_while_python_ends_prints_nothing(number, statuses):
    """The status of a command that is done, or that refused, stays; a Ctrl-C ends Python at once, should it hang."""
    code = (f"import atexit, os, sys\nfrom utils.errors import UserError, run_cli\n"
            f"def main(argv):\n    if argv: raise UserError('no')\n"
            f"atexit.register(os.kill, os.getpid(), {number.value})\nrun_cli(main)\n")  # fmt: skip
    for words, status, said in (([], statuses[0], b""), (["x"], statuses[1], b"error: no\n")):
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, cwd=ROOT)
        assert (ended.returncode, ended.stderr) == (status, said)


def test_forked_worker_dies_of_the_signal_without_a_line():
    leave_on_signals()
    if (child := os.fork()) == 0:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread; take fewer workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "Killed.; it was killed, perhaps"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "unavailable; take fewer workers"),
        (MemoryError("cannot allocate 7 GiB"), "MemoryError: cannot allocate 7 GiB; take smaller batches"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nhint"), "CUDA out of memory. Tried; take smaller batches"),
    ],
)
def test_machine_without_threads_or_memory_is_an_error_of_one_line(capsys, error, said):
    def fail(argv):
        raise error

    with pytest.raises(SystemExit) as e:
        run_cli(fail)
    assert e.value.code == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_unexpected_error_keeps_its_traceback():
    def fail(argv):
        raise KeyError("defect")

    with pytest.raises(KeyError):
        run_cli(fail)


def test_another_process_than_the_first_names_itself(monkeypatch, capsys):
    def fail(argv):
        os.environ.pop("WORLD_SIZE")  # Lightning does, when it cleans up
        raise UserError("a.png is broken")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("utils.errors.SAME_MISTAKE", 0)
    monkeypatch.setattr("utils.errors.leave_at_once", sys.exit)
    with pytest.raises(SystemExit) as e:
        run_cli(fail)
    assert e.value.code == 2
    assert capsys.readouterr().err == "error: process 1 of 2: a.png is broken\n"


class Group:
    """What run_cli needs of the other processes."""

    world, own, other = 2, None, None

    def __init__(self):
        self.failures, self.left = [], []

    def heard(self, seconds):
        return self.other if seconds else None

    def leave_now(self, failure):
        self.left.append(failure)
        sys.exit(failure.code)

    def tell(self, failure):
        self.failures.append(failure)
        self.own = failure
        return True


@pytest.fixture
def group(monkeypatch):
    group = Group()
    monkeypatch.setattr("utils.errors.peers", lambda: group)
    monkeypatch.setattr("utils.errors.leave_at_once", sys.exit)
    return group


def test_failure_in_a_group_is_told_once_with_its_traceback_here(group, capsys):
    def fail(argv):
        try:
            raise KeyError("defect")
        except KeyError as error:
            announce(error)  # as Lightning does, which cleans up before it raises the error
            raise

    with pytest.raises(SystemExit) as e:
        run_cli(fail)
    assert e.value.code == 1
    assert [(failure.text, failure.bug) for failure in group.failures] == [("KeyError: 'defect'", True)]
    assert capsys.readouterr().err.count("Traceback") == 1


def test_error_that_follows_from_another_process_gives_way_to_the_reason(group, monkeypatch, capsys):
    monkeypatch.setattr("utils.errors.is_communication_error", lambda e: isinstance(e, RuntimeError))
    group.other = Failure(1, 2, "a.png is broken")
    with pytest.raises(SystemExit) as e:
        announce(RuntimeError("Connection closed by peer"))
    assert e.value.code == 2
    assert group.left == [group.other]
    group.other = None
    announce(RuntimeError("Connection closed by peer"))
    assert "lost the connection to another process" in group.failures[0].text
    assert "Traceback" not in capsys.readouterr().err


def test_error_of_another_process_is_told_as_its_own(group):
    announce(ProcessError(1, "a.png is broken", 2))
    assert group.failures == [Failure(1, 2, "a.png is broken")]


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("SimCLR", ["simclr", "simsiam", "nnclr"], "simclr"),
        ("resnet-18", ["resnet18", "resnet34"], "resnet18"),
        ("nnclrr", ["nnclr", "simclr"], "nnclr"),
        ("--temprature", ["--temperature", "--train_dir"], "--temperature"),
        ("--temp", ["--stem", "--temperature"], "--temperature"),
        ("vicreg", ["simclr", "byol", "rotnet"], None),
        ("--foo", ["--flip", "--blur"], None),
    ],
)
def test_did_you_mean_suggests_a_near_name_or_none(name, known, hint):
    assert did_you_mean(name, known) == (f" (did you mean {hint}?)" if hint else "")


def test_run_cli_prints_names_that_the_terminal_cannot_print(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    run_cli(lambda argv: print("caf\u00e9 \udcff", flush=True))
    assert terminal.buffer.getvalue() == b"caf\\xe9 \\udcff\n"
