"""Two processes of the application of which one fails, started by Lightning or by torchrun."""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from pathlib import Path

from tests.helpers.commands import start

HEAD = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
import cli.plan
from utils.plan import HardwareConfig
if {lightning}:  # as --gpus 0 1 would be, on the CPU
    cli.plan.choose_hardware = lambda *_: HardwareConfig("cpu", 2, 1, 2)
import evaluation.pictures
evaluation.pictures.embedding = lambda *_: None
import {main} as application
from runs.trainer import Trainer
from methods.base import Method
from utils.distributed import launched_rank, rank, world_size
from utils.errors import UserError, run_cli

def at_step(number, fail, of=1):
    whole = Method.training_step
    def training_step(self, batch, i):
        if self.trainer.global_step == number and rank() == of:
            fail()
        return whole(self, batch, i)
    Method.training_step = training_step

def throw(error):
    raise error
"""


def run_with_fault(
    folder: Path, argv: list[str], fault: str, launcher: str, main: str = "main_contrastive", seconds: float = 120
) -> tuple[int, str, float]:
    """(exit status, what both processes printed, seconds from the mark "NOW" to the end) of a command with a fault.

    fault: Python code that runs before the command; it prints "NOW" where it fails.
    """
    script = folder / "fault.py"
    script.write_text(HEAD.format(lightning=launcher == "lightning", main=main) + fault
                      + "\nif __name__ == '__main__':\n    run_cli(application.main)\n")  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start([*(torchrun if launcher == "torchrun" else []), str(script), *argv], start_new_session=True)
    printed, failed_at, deadline = "", None, time.time() + seconds
    waiting = selectors.DefaultSelector()
    try:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while time.time() < deadline:
            if waiting.select(0.1):
                block = os.read(process.stdout.fileno(), 2**16).decode()
                if not block:
                    break
                printed += block
                if failed_at is None and "NOW" in printed:
                    failed_at = time.time()
        code = process.wait(max(0.1, deadline - time.time()))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        waiting.close()
    assert code is not None, f"it hangs: {printed}"
    return code, printed, time.time() - (failed_at or time.time())


def errors(printed: str) -> list[str]:
    """The lines that say why processes ended."""
    return re.findall(r"error: .*", printed)
