"""Several machines, which are groups of processes of this one: torchrun with two agents, and the variables of SLURM."""

import json
import os
import socket

import pytest

import main_contrastive
import main_linear
from tests.helpers.commands import TINY, start, words
from utils.files import read_metrics

pytestmark = [pytest.mark.usefixtures("no_embedding"), pytest.mark.slow]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start_by_torchrun(argv):
    """torchrun on each of two machines, one process each."""
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--rdzv_id", "two"]
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *rendezvous]
    return [start([*torchrun, *argv]) for _ in range(2)]


def start_by_srun(argv):
    """The tasks of a job of two machines, one each, with the variables that srun gives them."""
    job = {"NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "JOB_ID": "4711", "JOB_NAME": "pretrain",
           "NODELIST": "127.0.0.1", "LOCALID": "0"}  # fmt: skip
    processes = []
    for task in ("0", "1"):
        with pytest.MonkeyPatch.context() as variables:
            for name in set(os.environ) & {"MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK"}:
                variables.delenv(name)
            for name, value in {**job, "PROCID": task, "NODEID": task}.items():
                variables.setenv(f"SLURM_{name}", value)
            variables.setenv("MASTER_PORT", MASTER_PORT)
            processes.append(start(argv))
    return processes


MASTER_PORT = free_port()


@pytest.mark.parametrize("launch", [start_by_torchrun, start_by_srun])
def test_two_machines_train_and_evaluate_as_one_process(tmp_path, few, launch):
    train = ["custom", *words("simclr", tmp_path, *few, "--lr", "0.0001", "--steps", "3")[1:], "--batch_size"]
    main_contrastive.main([*train, "12", "--run_id", "one"])
    evaluate = ["custom", TINY[1], *few[:2], "--pretrained_feature_extractor", str(tmp_path / "one"), "--evaluation",
                "linear", "logistic", "--lr", "0.1", "--epochs", "2", "--num_workers", "0", "--output", str(tmp_path),
                "--batch_size"]  # fmt: skip
    main_linear.main([*evaluate, "12", "--run_id", "one-evaluated"])
    for argv in (["main_contrastive.py", *train, "6", "--run_id", "two"],
                 ["main_linear.py", *evaluate, "6", "--run_id", "two-evaluated"]):  # fmt: skip
        processes = launch(argv)
        try:
            printed = [process.communicate(timeout=400)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], printed
    losses = [[float(r["loss"]) for r in read_metrics(tmp_path / run / "metrics.csv") if r["loss"]]
              for run in ("one", "two")]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    (one,), (two,) = (json.loads((tmp_path / f"{run}-evaluated" / "summary.json").read_text()).values()
                      for run in ("one", "two"))  # fmt: skip
    assert one["scores"] == pytest.approx(two["scores"], abs=0.01)
    assert sum(text.count("top-1 in per cent") for text in printed) == 1, "one table"
