"""Version, commit, packages and machine behind a result."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

VERSION = "0.1.0"


PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "numpy", "pillow", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Version, commit, packages and machine behind a run."""
    return {
        "lookalike": VERSION,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "threads": torch.get_num_threads(),  # another number rounds sums in another order
        "packages": {name: version(name) for name in PACKAGES},
    }


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = [*git, "status", "--porcelain", "--", ".", ":!results/*.json"]  # a new record is no change of the code
        dirty = subprocess.run(status, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
