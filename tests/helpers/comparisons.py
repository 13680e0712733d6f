"""Run folders with settings and metrics of a choice, without a training."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from tests.helpers.commands import plan_of
from utils.plan import Plan

KNN = {0: 60.0, 1: 62.0, 2: 64.0}  # of the last epoch, by seed


@functools.cache
def _plan(method: str) -> Plan:
    return plan_of(method, "--steps", "40", "--batch_size", "64")[1]


def write_run(folder: Path, seed: int = 0, method: str = "simclr", steps: int = 40, **flags: Any) -> Path:
    """A run of 40 steps, of which `steps` are done; flags: in args.json, beside those of the plan."""
    plan = dataclasses.replace(_plan(method), seed=seed)
    values = {"method": method, "seed": seed, "run_id": folder.name, "lr": 0.3} | flags
    folder.mkdir(parents=True)
    recorded = {"argv": ["digits"], "flags": values, "plan": dataclasses.asdict(plan)}
    (folder / "args.json").write_text(json.dumps(recorded))
    lines = ["step,epoch,loss,knn_20,queue_age"]
    lines += [f"{step},{step // 22},{5 - step / 10 + seed / 100},,{step}" for step in range(9, steps, 10)]
    lines += [f"{steps - 1},1,,{KNN[seed]},"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder
