"""The process of a torture run: the application as it is, with a fault that comes at a known moment.

A fault is no part of the application: hooks are set from outside, on Lightning's callbacks and on Python's audit events
(`os.rename`), and files are cut by the kernel's own limit on the size of a file.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.torture import hooks
from utils.errors import run_cli


def become_the_application(job: dict[str, Any], output: Any, events: Any) -> None:
    """Run the application in this fresh fork and end as a process of its own does: with Python's own finalization.

    job: "main", "argv", "env" (all variables, or None to keep them) and "hooks", a list of (name of a function in
    tests/torture/hooks.py, its arguments). output, events: pipes for stdout and stderr, and for the numbers of finished
    optimizer steps.
    """
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    output.close()
    code = run(job, events.fileno())
    ctypes.pythonapi.Py_Exit(code)  # multiprocessing would leave with os._exit: no atexit, no last words of threads


def run(job: dict[str, Any], events: int) -> int:
    """Set the hooks and run the application; the exit status."""
    multiprocessing.set_start_method(None, force=True)  # its workers start as everywhere, not as this fork did
    os.setsid()  # so that the harness can end what this process leaves behind
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)  # under nohup or in the background some are ignored
    if job["env"]:
        os.environ.clear()
        os.environ.update(job["env"])
    sys.argv = [f"{job['main']}.py", *job["argv"]]
    os.write(events, b"0\n")  # it runs
    try:
        hooks.install(job["hooks"], events)
        run_cli(importlib.import_module(job["main"]).main)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":  # a process of its own: python -m tests.torture.child JOB EVENTS
    sys.exit(run(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
