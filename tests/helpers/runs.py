"""Runs of the application in tests: compare, interrupt and refuse them."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import main_contrastive
from runs.callbacks import ProgressBar
from utils.errors import UserError
from utils.files import read_metrics

TIMINGS = ("images_per_second", "data_wait_fraction")


def checkpoint(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return torch.load(folder / "last.ckpt", weights_only=True)


def equal(a: Any, b: Any) -> bool:
    """Whether two checkpoints are equal: every tensor to the bit, every number."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(v, w) for v, w in zip(a, b, strict=True))
    return a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs have equal weights, optimizers, schedules and metrics, timings aside."""
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(checkpoint(a)[part], checkpoint(b)[part]), part
    rows = [
        [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(f / "metrics.csv")] for f in (a, b)
    ]
    filled = [[row for row in part if any(v for k, v in row.items() if k not in ("step", "epoch"))] for part in rows]
    assert filled[0] == filled[1]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Let a real signal arrive in the middle of a training step, once."""
    original, sent = ProgressBar.on_train_batch_end, []

    def send(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == step and not sent:
            sent.append(step)
            signal.raise_signal(number)

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", send)


def refused(argv: list[str]) -> str:
    """The one-line error with which main_contrastive.py refuses a command."""
    with pytest.raises(UserError) as e:
        main_contrastive.main(argv)
    assert "\n" not in str(e.value)
    return str(e.value)


def slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a SLURM job of one process that srun started."""
    names = {"NTASKS": "1", "JOB_ID": "4711", "JOB_NAME": "pretrain", "PROCID": "0", "LOCALID": "0", "NODEID": "0",
             "NODELIST": "localhost", "NNODES": "1"}  # fmt: skip
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
