"""Collectives and their gradients; what ranks agree on beside sums: errors, and work of the first rank."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.helpers.collectives import Collective, CountCollectives
from tests.helpers.method_cases import every_case
from tests.helpers.runs import slurm_job
from tests.prove import local_batch, prepare
from utils.distributed import (
    ProcessError,
    barrier,
    gather,
    gather_together,
    init_process_group,
    is_communication_error,
    launched_rank,
    launched_size,
    mean_over_ranks,
    raise_together,
    reason_of,
    run_on_first_rank,
)
from utils.errors import UserError


def _gathered(rank, world):
    """Three tensors of different types and lengths, one of them empty, gathered together; and one alone."""
    rows = torch.arange(6.0).view(3, 2) + 10 * rank
    together = gather_together(rows, torch.tensor([rank, -1]), torch.ones(1, 2, 2, dtype=torch.bool) * (rank == 1),
                               torch.zeros(0, 3, dtype=torch.double))  # fmt: skip
    return [*together, gather(rows.T)]


@pytest.mark.parametrize("world", [2, 3])
def test_gather_puts_rows_of_any_type_in_rank_order(world, ranks):
    rows = torch.cat([torch.arange(6.0).view(3, 2) + 10 * rank for rank in range(world)])
    for found in ranks(world).run(_gathered):
        assert torch.equal(found[0], rows)
        assert found[1].tolist() == [x for rank in range(world) for x in (rank, -1)]
        assert found[2].tolist() == [[[rank == 1] * 2] * 2 for rank in range(world)]
        assert (found[3].shape, found[3].dtype) == ((0, 3), torch.double)
        assert torch.equal(found[4], torch.cat([part.T for part in rows.split(3)])), "also what is not contiguous"


def test_gather_of_one_process_is_the_tensor_itself():
    x, y = torch.ones(2), torch.zeros(3)
    assert gather(x) is x
    assert gather_together(x, y) == (x, y)


def _gradients(rank, world):
    """Gradients of a loss that depends on all gathered rows, with weights of its own on each rank, and the calls."""
    g = torch.Generator().manual_seed(rank)
    x, y = (torch.randn(2, 3, dtype=torch.double, generator=g).requires_grad_() for _ in range(2))
    weights = torch.randn(2 * world, 3, dtype=torch.double, generator=g)
    with CountCollectives() as counted:
        all_x, _, all_y = gather_together(x, torch.arange(2), y)
        (all_x.square() * weights + 2 * all_y * weights).sum().backward()
    return x.detach(), weights, x.grad, y.grad, counted.calls


@pytest.mark.parametrize("world", [2, 3])
def test_gradient_of_gather_is_that_of_the_sum_of_the_losses_of_all_ranks(world, ranks):
    found = ranks(world).run(_gradients)
    weights = sum(weights for _, weights, *_ in found)  # of each row in all losses together
    for part, (x, _, x_gradient, y_gradient, calls) in zip(weights.split(2), found, strict=True):
        torch.testing.assert_close(x_gradient, 2 * x * part)
        torch.testing.assert_close(y_gradient, 2 * part)
        size = 2 * 3 * 8
        assert calls == [Collective("all_gather", world * (2 * size + 2 * 8))] + 2 * [
            Collective("reduce_scatter", world * size)
        ], "one for all three, no padding, and none for a tensor without gradient"


def _equal_gradient(rank, world):
    """The gradient of a loss of an average alone, with and without saying so, and the calls."""
    out = []
    for equal in (False, True):
        x = torch.arange(3, dtype=torch.double).add(rank).requires_grad_()
        with CountCollectives() as counted:
            mean_over_ranks(x, equal_gradient=equal).square().sum().backward()
        out.append((x.grad.tolist(), len(counted.calls)))
    return out


def test_gradient_that_is_equal_on_all_ranks_needs_no_collective(ranks):
    for (reduced, two), (copied, one) in ranks(2).run(_equal_gradient):
        assert reduced == copied == [1.0, 3.0, 5.0]
        assert (two, one) == (2, 1)


def _step_calls(rank, world, case):
    """The collectives of the loss of one small step, without those of batch norm and of the online probe."""
    torch.manual_seed(0)
    method = prepare(case, world, synchronize=False)
    batch = method.transform_batch(local_batch(rank, world, 0, method))
    feats = method.forward_views(batch)
    with CountCollectives() as counted:
        method.training_loss(feats, batch)["loss"].backward()
    return [call.name for call in counted.calls]


CALLS = {
    "barlow_twins": ["all_reduce"] * 5,  # means, variances and C forward; variances and means backward
    "nnclr": ["all_gather", "all_gather", "reduce_scatter"],  # predictions and positions; rows for the queue
    "simclr": ["all_gather", "reduce_scatter"],
}
MOST = {  # of the others; where it is not named, one: rows for a queue, or a mean
    "distill": 2,  # a queue of the large and one of the small views
    "ibot": 6,  # two centres; KoLeo gathers each view with its gradient
    "mocov2": 2,  # two queues where it is symmetric
    "swav": 8,  # each iteration of Sinkhorn-Knopp for each large view; two queues
    "vicreg": 5,  # the gradient of each view by itself
}


@pytest.mark.parametrize("case", every_case())
def test_loss_of_a_method_calls_few_collectives(case, ranks):
    name = case.split()[0]
    calls, others = ranks(2).run(_step_calls, case)
    assert calls == others
    if name in CALLS:
        assert calls == CALLS[name]
    else:
        assert len(calls) <= MOST.get(name, 1)


@pytest.fixture
def formed(monkeypatch):
    """The calls by which a process forms a group on a machine that pretends to have GPUs."""
    calls = []
    monkeypatch.setattr("torch.cuda.set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: calls.append((*args, kwargs)))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    return calls


def test_init_process_group_takes_its_own_gpu_before_the_group_forms(monkeypatch, formed):
    """NCCL refuses two ranks of one group whose objects go through the same GPU, and ends waits after ten minutes."""
    monkeypatch.setenv("RANK", "1")
    init_process_group(torch.device("cuda", 1), processes=2)
    (first, device), (backend, options) = formed
    assert (first, device, backend) == ("set_device", torch.device("cuda", 1), "nccl")
    assert options["device_id"] == torch.device("cuda", 1)
    assert options["timeout"] >= timedelta(hours=1)


def test_init_process_group_on_the_cpu_and_of_one_process(monkeypatch, formed):
    init_process_group(torch.device("cuda", 0), processes=1)
    assert formed == []
    monkeypatch.setenv("RANK", "0")
    init_process_group(torch.device("cpu"), processes=2)
    ((backend, options),) = formed
    assert (backend, set(options)) == ("gloo", {"timeout"})


def test_init_process_group_knows_the_variables_of_slurm(monkeypatch, formed):
    slurm_job(monkeypatch)
    for name, value in {"NTASKS": "4", "NTASKS_PER_NODE": "2", "NNODES": "2", "PROCID": "3", "LOCALID": "1",
                        "NODEID": "1", "NODELIST": "node[17-18]"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    init_process_group(torch.device("cuda", 1), processes=4)
    expected = {"MASTER_ADDR": "node17", "MASTER_PORT": "19711", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4",
                "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    assert {name: os.environ[name] for name in expected} == expected
    assert [call[0] for call in formed] == ["set_device", "nccl"]


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_children_started_in_an_interactive_shell_of_slurm_have_ranks_of_their_own(monkeypatch, formed, name):
    """The shell is task 0 of the job, whatever it starts; with srun the variables of SLURM count."""
    slurm_job(monkeypatch)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert (launched_rank(), launched_size()) == (0, 2)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert launched_rank() == 1
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_JOB_NAME", name)
    assert (launched_rank(), launched_size()) == (0, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (launched_rank(), launched_size()) == (1, 2)


LIMIT = timedelta(milliseconds=300)


def _work_of_the_first_rank(rank, world):
    """Seconds of work of the first rank against a time limit of 0.3; whether the group lives on."""
    dist.distributed_c10d._set_pg_timeout(LIMIT)
    try:
        started = time.monotonic()
        result = run_on_first_rank(lambda: (time.sleep(0.7), "pictures")[1])
        if rank == 0:
            time.sleep(0.6)
        barrier()
        total = torch.ones(1)
        dist.all_reduce(total)
        return result, total.item(), time.monotonic() - started
    finally:
        dist.distributed_c10d._set_pg_timeout(timedelta(minutes=30))


def test_first_rank_may_work_longer_than_the_time_limit_of_the_group(ranks):
    (first, total, _), (other, _, seconds) = ranks(2).run(_work_of_the_first_rank)
    assert (first, other, total) == ("pictures", None, 2)
    assert seconds > 1.2


def _caught(function, *args):
    """(type, rank, status, text) of what a call raises."""
    try:
        function(*args)
    except Exception as e:
        return type(e).__name__, getattr(e, "rank", None), getattr(e, "code", None), reason_of(e)
    return None


def _failures(rank, world):
    """What several calls raise of which one rank fails."""
    return [
        _caught(raise_together, UserError("a.png is broken") if rank == 1 else None),
        _caught(raise_together, KeyError("defect") if rank == 0 else None),
        _caught(raise_together, None),
        _caught(run_on_first_rank, lambda: 1 / 0),
    ]


def test_error_of_one_rank_is_raised_on_all(ranks):
    division = "ZeroDivisionError: division by zero"
    assert ranks(2).run(_failures) == [
        [
            ("ProcessError", 1, 2, "a.png is broken"),
            ("KeyError", None, None, "KeyError: 'defect'"),
            None,
            ("ZeroDivisionError", None, None, division),
        ],
        [
            ("UserError", None, 2, "a.png is broken"),
            ("ProcessError", 0, 1, "KeyError: 'defect'"),
            None,
            ("ProcessError", 0, 1, division),
        ],
    ]


def test_one_process_raises_its_error_and_does_its_work():
    with pytest.raises(KeyError):
        raise_together(KeyError("x"))
    raise_together(None)
    assert run_on_first_rank(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        run_on_first_rank(lambda: 1 / 0)


def _kinds(rank, world):
    errors = [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"),
        dist.DistNetworkError("failed to recv"),
        RuntimeError("size mismatch"),
        UserError("the c10d is broken"),
        ProcessError(1, "gloo", 1),
    ]
    return [is_communication_error(e) for e in errors]


def test_lost_connections_are_told_from_other_errors(ranks):
    assert ranks(2).run(_kinds) == [[True, True, False, False, False]] * 2
    assert not is_communication_error(RuntimeError("gloo")), "one process has no connection to lose"


def test_reason_is_one_line_with_the_type_of_an_unexpected_error():
    worker = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    assert reason_of(UserError(worker + "utils.errors.UserError: a.png is broken")) == "a.png is broken"
    assert reason_of(RuntimeError("CUDA error: x\nhint")) == "RuntimeError: CUDA error: x"
    assert reason_of(RuntimeError("Caught\nTraceback (most)\nKeyError: 'x'")) == "KeyError: 'x'"
    assert reason_of(MemoryError()) == "MemoryError"
