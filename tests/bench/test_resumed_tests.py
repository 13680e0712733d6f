"""Tests that are not run a second time."""

import os
import subprocess
import sys

from bench.resumed_tests import outcomes, results
from tests.helpers.commands import ROOT

TESTS = """
import os, pathlib, pytest, warnings
def test_passes():
    with open("ran", "a") as f:
        f.write("p")
def test_ends_the_process():
    if not os.path.exists("ended"):
        pathlib.Path("ended").touch()
        os._exit(9)
def test_warns(): warnings.warn("TF32 is off")
def test_fails(): assert 1 == 2
@pytest.mark.skipif(True, reason="no GPU")
def test_skipped(): pass
"""


def run(folder, file):
    env = os.environ | {"PYTHONPATH": str(ROOT), "RESULTS_OF_TESTS": str(file)}
    words = ["-m", "pytest", "-q", "-p", "bench.resumed_tests", "-p", "no:cacheprovider", "-W", "default"]
    words += ["--continue-on-collection-errors", "test_x.py", "test_y.py"]
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, stdout=subprocess.DEVNULL)


def test_plugin_goes_on_behind_a_test_that_ended_the_process(tmp_path):
    (tmp_path / "test_x.py").write_text(TESTS)
    (tmp_path / "test_y.py").write_text("import no_such_module")
    (tmp_path / "pytest.ini").write_text("[pytest]")
    file = tmp_path / "lines" / "tests.jsonl"
    assert run(tmp_path, file).returncode == 9
    first = {"test_x.py::test_passes": "passed", "test_x.py::test_ends_the_process": "begun", "test_y.py": "failed"}
    assert outcomes(file) == first
    with file.open("a") as f:
        f.write('{"test": "test_x.py::test_wa')  # the process was killed while it wrote
    assert run(tmp_path, file).returncode == 1
    tests = [line["test"] for line in results(file) if line.get("outcome") == "begun"]
    assert tests[-1] == "test_x.py::test_ends_the_process", "it comes behind the others"
    found = {test.partition("::test_")[2]: outcome for test, outcome in outcomes(file).items()}
    expected = {"passes": "passed", "ends_the_process": "passed", "warns": "passed", "fails": "failed"}
    assert found.items() >= (expected | {"skipped": "skipped"}).items()
    lines = {line.get("outcome", "warning"): line["text"] for line in results(file) if "text" in line}
    assert "assert 1 == 2" in lines["failed"]
    assert "no GPU" in lines["skipped"]
    assert lines["warning"] == "TF32 is off"
    assert run(tmp_path, file).returncode == 1, "nothing is left to run, and a test has failed"
    assert (tmp_path / "ran").read_text() == "p"
