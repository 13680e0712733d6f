"""Several processes and accumulated batches."""

import math

import pytest
import torch

import main_contrastive
from methods.base import Method
from tests.helpers.commands import start, words
from tests.helpers.runs import checkpoint
from tests.torture.launch import run_to_end
from utils.files import read_metrics

pytestmark = pytest.mark.usefixtures("no_embedding")


def start_by_torchrun(argv, folder):
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    process = start([*torchrun, "main_contrastive.py", *argv])
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed


def fork_two(argv, folder):
    """Two processes with the variables that torchrun sets."""
    ended = run_to_end(argv, folder, processes=2)
    assert ended.statuses == [0, 0], ended.text


@pytest.mark.parametrize(
    ("method", "more", "launch"),
    [
        ("byol", ["--small_views", "2", "--small_size", "8"], fork_two),
        pytest.param("nnclr", ["--temperature", "1", "--queue_size", "60"], start_by_torchrun, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path, few, method, more, launch):
    """The same images, views, losses, queue and teacher as one process with twice the batch."""
    # A short, flat start: at the paper's temperature the first steps amplify rounding, as another thread count does.
    common = ["custom", *words(method, tmp_path, *few, "--lr", "0.0001", "--steps", "8", *more)[1:]]
    main_contrastive.main([*common, "--run_id", "one"])
    launch([*common, "--run_id", "two", "--batch_size", "6"], tmp_path)
    one, two = (read_metrics(tmp_path / r / "metrics.csv") for r in ("one", "two"))
    losses = [[float(r["loss"]) for r in rows if r["loss"]] for rows in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    a, b = (checkpoint(tmp_path / r)["state_dict"] for r in ("one", "two"))
    assert a.keys() == b.keys()
    if method == "byol":
        assert a["target.tau"] == b["target.tau"]
        for key in (k for k in a if ".teacher." in k and k.endswith("weight")):
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)
        return
    assert torch.equal(a["queue.labels"], b["queue.labels"]), "the same images in the same places of the queue"
    torch.testing.assert_close(a["queue.rows"], b["queue.rows"], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("method", "more"), [("byol", []), ("nnclr", ["--queue_size", "600"])])
def test_accumulation_moves_teachers_and_queues_once_per_optimizer_step(tmp_path, few, monkeypatch, method, more):
    """5 batches an epoch, 2 to a step: three steps, the last of one batch; tau follows the steps of the run."""
    moved = []
    whole = Method.after_optimizer_step
    monkeypatch.setattr(Method, "after_optimizer_step", lambda self: (moved.append(self.progress), whole(self)))
    argv = ["custom", *words(method, tmp_path, *few, "--accumulate", "2", "--run_id", "r", *more)[1:]]
    main_contrastive.main(argv)
    assert moved == pytest.approx([step / 9 for step in range(9)])
    state = checkpoint(tmp_path / "r")["state_dict"]
    if method == "byol":
        assert state["target.tau"].item() == pytest.approx(1 - 0.01 * (1 + math.cos(math.pi * 8 / 9)) / 2)
    else:
        assert state["queue.pointer"] == 3 * 5 * 12
        assert state["queue.age"].max() == 8, "pushes are steps, not batches"
