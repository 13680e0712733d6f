"""Errors of one line, and suggestions for misspelt names."""

import pytest

from utils.errors import Interrupted, UserError, did_you_mean, run_cli


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


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("SimCLR", ["simclr", "simsiam", "nnclr"], "simclr"),
        ("resnet-18", ["resnet18", "resnet34"], "resnet18"),
        ("nnclrr", ["nnclr", "simclr"], "nnclr"),
        ("--temprature", ["--temperature", "--train_dir"], "--temperature"),
        ("vicreg", ["simclr", "byol", "rotnet"], None),
        ("--foo", ["--flip", "--blur"], None),
    ],
)
def test_did_you_mean_suggests_a_near_name_or_none(name, known, hint):
    assert did_you_mean(name, known) == (f" (did you mean {hint}?)" if hint else "")
