"""The Triton kernels compile for GPUs that are not here, with few registers and nothing spilled."""

import os
import subprocess
import sys

import pytest

from bench.triton_resources import TARGETS, assemble, main
from tests.helpers.commands import ROOT
from utils.errors import UserError

pytest.importorskip("triton", reason="Triton is not installed; torch brings it on Linux")
MOST = {"_crop": 48, "_color": 40, "_blur_columns": 40, "_blur_rows": 40}  # registers of a thread


def table(*targets, cache):
    """(kernel, target, registers, spilled bytes) of the command, in a process that does not interpret kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "bench.triton_resources", *targets]
    lines = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return [line.split() for line in lines.splitlines()[1:]]


@pytest.mark.parametrize("targets", [("90",), pytest.param((), marks=pytest.mark.slow)], ids=["sm_90", "every target"])
def test_kernels_have_few_registers_and_spill_none(targets, tmp_path):
    rows = table(*targets, cache=tmp_path)
    assert {(kernel, target) for kernel, target, _, _ in rows} == {
        (kernel, f"sm_{target}") for kernel in MOST for target in (targets or TARGETS)
    }
    for kernel, target, registers, spilled in rows:
        assert 8 < int(registers) <= MOST[kernel], f"{kernel} takes {registers} registers on {target}"
        assert spilled == "0", f"{kernel} spills {spilled} bytes on {target}"


def test_main_refuses_to_interpret(monkeypatch):
    monkeypatch.setattr("triton.knobs.runtime.interpret", True)
    with pytest.raises(UserError, match="unset it"):
        main(["90"])


def test_assemble_counts_stores_and_loads_of_what_is_spilled(monkeypatch):
    report = "1 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\nUsed 255 registers, 400 bytes cmem[0]"
    done = subprocess.CompletedProcess([], 0, "", report)
    monkeypatch.setattr("bench.triton_resources.subprocess.run", lambda *args, **kwargs: done)
    assert assemble("ptxas", ".target sm_90a\n") == (255, 32)
