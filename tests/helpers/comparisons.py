"""Run folders with settings and metrics of a choice, without a training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.helpers.commands import plan_of

KNN = {0: 60.0, 1: 62.0, 2: 64.0}  # of the last epoch, by seed


def write_run(folder: Path, seed: int = 0, method: str = "simclr", steps: int = 40, **flags: Any) -> Path:
    """A run of 40 steps, of which `steps` are done; flags: in args.json, beside those of the plan."""
    _, plan = plan_of(method, "--seed", str(seed), "--steps", "40", "--batch_size", "64")
    values = {"method": method, "seed": seed, "run_id": folder.name, "lr": 0.3} | flags
    folder.mkdir(parents=True)
    recorded = {"argv": ["digits"], "flags": values, "plan": dataclasses.asdict(plan)}
    (folder / "args.json").write_text(json.dumps(recorded))
    lines = ["step,epoch,loss,knn_20,queue_age"]
    lines += [f"{step},{step // 22},{5 - step / 10 + seed / 100},,{step}" for step in range(9, steps, 10)]
    lines += [f"{steps - 1},1,,{KNN[seed]},"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder
