"""Sinkhorn-Knopp against loops in float64, known assignments, sums, large scores, and any number of ranks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from utils.sinkhorn import sinkhorn


def draw(n, k, seed=0):
    return torch.rand(n, k, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def naive_sinkhorn(scores, epsilon, iterations):
    """Divide each prototype's entries by their sum, then each row's, as often as `iterations` says."""
    q = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    for _ in range(iterations):
        mass = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[x / m for x, m in zip(row, mass, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return torch.tensor(q, dtype=torch.double)


@pytest.mark.parametrize(("n", "k"), [(1, 3), (6, 4), (5, 9)])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_agrees_with_loops(n, k, epsilon, iterations):
    scores = draw(n, k)
    assert_close(sinkhorn(scores, epsilon, iterations), naive_sinkhorn(scores, epsilon, iterations), rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), k=st.integers(2, 7))
@settings(max_examples=30, deadline=None)
def test_rows_sum_to_one_and_prototypes_share_the_rows(seed, n, k):
    q = sinkhorn(draw(n, k, seed), 0.5, 300)
    assert_close(q.sum(dim=1), torch.ones(n, dtype=torch.double), rtol=0, atol=1e-12)
    assert_close(q.sum(dim=0), torch.full((k,), n / k, dtype=torch.double), rtol=0, atol=1e-6)
    assert_close(sinkhorn(draw(n, k, seed), 0.5, 1).sum(dim=1), torch.ones(n, dtype=torch.double), rtol=0, atol=1e-12)


def test_known_assignments():
    """Equal scores: uniform. One prototype far ahead for all: it is shared out all the same."""
    assert_close(sinkhorn(torch.zeros(4, 5), 0.05, 3), torch.full((4, 5), 0.2))
    favourite = torch.tensor([[0.9, 0.0], [0.8, 0.0]])
    q = sinkhorn(favourite, 0.05, 500)
    assert_close(q.sum(dim=0), torch.ones(2), rtol=0, atol=1e-4)
    assert_close(q[0, 0] / q[1, 0] * q[1, 1] / q[0, 1], torch.tensor(0.1 / 0.05).exp(), rtol=1e-3, atol=0)
    one_hot = sinkhorn(torch.eye(3), 0.01, 3)
    assert_close(one_hot, torch.eye(3), rtol=0, atol=1e-6)


def test_order_of_rows_and_a_constant_do_not_matter():
    scores, order = draw(6, 4), torch.randperm(6, generator=torch.Generator().manual_seed(0))
    q = sinkhorn(scores, 0.05, 3)
    assert_close(sinkhorn(scores[order], 0.05, 3), q[order])
    assert_close(sinkhorn(scores + 7, 0.05, 3), q, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_scores_neither_overflow_nor_leave_empty_rows(dtype):
    """exp(60000 / 0.05) is infinite, and exp(-60000 / 0.05) is 0 in any precision."""
    scores = torch.tensor([[6e4, -6e4, 0.0], [6e4, 0.0, -6e4], [-6e4, -6e4, -6e4]], dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        q = sinkhorn(scores, 0.05, 3)
    assert q.dtype == torch.float32
    assert_close(q.sum(dim=1), torch.ones(3))


def test_no_gradient():
    scores = draw(4, 3).requires_grad_()
    assert not sinkhorn(scores, 0.05, 3).requires_grad


ROWS = {2: (4, 3), 3: (1, 4, 2)}  # of each rank: unequally many


def on_a_rank(rank, world, scores):
    return sinkhorn(scores.split(ROWS[world])[rank], 0.05, 3)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_compute_what_one_process_computes(ranks, world):
    scores = draw(7, 5)
    parts = ranks(world).run(on_a_rank, scores)
    assert [len(part) for part in parts] == list(ROWS[world])
    assert_close(torch.cat(parts), sinkhorn(scores, 0.05, 3), rtol=0, atol=1e-12)
