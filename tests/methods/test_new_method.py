"""A method of twenty lines, added to METHODS, passes what runs over METHODS while no other list is edited."""

import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT

FILES = ("tests/methods", "tests/utils/test_optim.py", "tests/runs/test_resume.py", "tests/test_rooms.py",
         "tests/application/test_determinism.py", "tests/test_pretended_gpu.py",
         "tests/application/test_interrupt_and_resume.py")  # fmt: skip
DOCUMENTS = "documented"  # the tables of docs/methods.md, which are a step of their own
FEWEST = 25  # tests that run over METHODS


@pytest.mark.slow
def test_method_added_to_methods_passes_what_runs_over_methods():
    words = ["-m", "pytest", "-p", "tests.helpers.throwaway_method", "-p", "no:cacheprovider", "-m", "",
             "-k", f"throwaway and not {DOCUMENTS}", *FILES]  # fmt: skip
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout[-3000:]
    passed = int(run.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert passed >= FEWEST
