"""Version, commit, packages and machine behind a result."""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
VERSION = "0.1.0"
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "numpy", "pillow", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Version, commit, packages and machine behind a run."""
    return {
        "lookalike": VERSION,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, {platform.system()}",
        "gpus": _gpus(),
        "threads": torch.get_num_threads(),  # another number rounds sums in another order
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """Name and instruction set of the processor, as in "AMD EPYC, x86_64"."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # only Linux has this file
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")][:1]
    return ", ".join([*names, platform.machine()])


def _gpus() -> list[str]:
    """Names of the CUDA devices, where this process has used one."""
    if not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _commit(root: Path = ROOT) -> str:
    """The commit of a checkout, with "+changes" where a tracked file is another; new records and prose do not count."""
    git = ["git", "-C", str(root)]
    uncounted = [":!results/*.json", ":!*.md"]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", *uncounted]
        dirty = subprocess.run(status, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
