"""Help without the libraries of a run."""

import json
import resource
import subprocess
import sys

import pytest

from cli.quick_help import asks_for_help
from tests.helpers.commands import ROOT

HELP_OF_ALL = """
import json, sys
sys.argv[0] = "main.py"
from cli.quick_help import install
standing_in = install(sys.argv[1:])
from cli.evaluate import _parser as evaluation
from cli.pretrain import _parser as pretraining
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
parsers = {name: pretraining(name, METHODS, DATASETS, DATASETS["digits"].views) for name in METHODS}
parsers["evaluation"] = evaluation(list(DATASETS), EVALUATIONS)
texts = {name: parser.format_help() for name, parser in parsers.items()}
loaded = standing_in and [name for name, module in sys.modules.items() if name == "torch" and module.__spec__.origin]
"""


def test_help_with_stand_ins_is_that_of_the_real_libraries():
    shown = HELP_OF_ALL + "print(json.dumps([texts, bool(loaded)]))"
    printed = subprocess.run([sys.executable, "-c", shown, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    texts, loaded = json.loads(printed.stdout)
    assert not loaded
    real: dict[str, dict[str, str]] = {}
    before, sys.argv = sys.argv, ["main.py"]
    try:
        exec(HELP_OF_ALL, real)
    finally:
        sys.argv = before
    assert texts == real["texts"]


@pytest.mark.parametrize("command", ["main_contrastive.py digits resnet18 --method ibot --help", "main_linear.py -h"])
def test_help_answers_within_a_second(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert printed.returncode == 0, printed.stderr
    assert "--batch_size" in printed.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_command_starts_again_where_a_stand_in_does_not_suffice(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from cli.quick_help import install\n"
        "install(sys.argv[1:])\n"
        "import numpy\n"
        "print(1 + int(numpy.ones(1)[0]))\n"
    )
    printed = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert (printed.returncode, printed.stdout) == (0, "2\n"), printed.stderr


def test_asks_for_help_reads_flags_only():
    assert asks_for_help(["digits", "-h"])
    assert not asks_for_help(["digits", "resnet18", "--name", "help"])
    assert not asks_for_help(["--", "--help"])
