"""What ranks agree on beside sums: errors, and work of the first rank; tests/prove.py runs the collectives."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from utils.distributed import (
    ProcessError,
    barrier,
    is_communication_error,
    raise_together,
    reason_of,
    run_on_first_rank,
)
from utils.errors import UserError

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
