"""Errors of one line, and suggestions for misspelt names."""

import io
import os
import signal

import pytest

from utils.errors import STOP_SIGNALS, Interrupted, UserError, did_you_mean, leave_on_signals, run_cli


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


def test_forked_worker_dies_of_the_signal_without_a_line():
    leave_on_signals()
    if (child := os.fork()) == 0:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


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
