"""KoLeo against loops in float64, lightly's loss, a known value and symmetries."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.helpers.networks import random_views
from utils.koleo import koleo_loss


@pytest.fixture(scope="module")
def lightly_loss():
    return pytest.importorskip("lightly.loss", reason="compares with lightly")


def naive_koleo(x):
    unit = [row / row.norm() for row in x]
    nearest = [min(float((a - b).norm()) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    return torch.tensor(-sum(math.log(d) for d in nearest) / len(x), dtype=torch.double)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_koleo_agrees_with_the_formula(n):
    x = random_views(1, n, 4)[0]
    assert_close(koleo_loss(x), naive_koleo(x), rtol=0, atol=1e-6)  # the distance has 1e-8 added


def test_koleo_and_gradient_agree_with_lightly(lightly_loss):
    a, b = (random_views(1, 12, 5)[0].requires_grad_() for _ in range(2))
    ours, theirs = koleo_loss(a), lightly_loss.KoLeoLoss()(b)
    ours.backward()
    theirs.backward()
    assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_koleo_of_orthogonal_vectors_is_half_the_log_of_one_half():
    assert_close(koleo_loss(3 * torch.eye(4, dtype=torch.double)).item(), -math.log(2) / 2, rtol=0, atol=1e-7)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_koleo_ignores_order_scale_and_rotation(seed, n):
    x = random_views(1, n, 6, seed)[0]
    value = koleo_loss(x)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.double, generator=generator)).Q
    order = torch.randperm(n, generator=generator)
    for other in (x[order], 5 * x, x @ rotation):
        assert_close(koleo_loss(other), value, rtol=0, atol=1e-6)


def test_koleo_moves_neighbours_apart():
    x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]], dtype=torch.double, requires_grad=True)
    koleo_loss(x).backward()
    assert x.grad[0, 1] < 0 < x.grad[1, 1], "a step against the gradient widens the angle"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_koleo_of_equal_and_of_zero_vectors_is_finite(dtype):
    for value in (0.0, 1.0, 6e4):
        x = torch.full((3, 4), value, dtype=dtype, requires_grad=True)
        loss = koleo_loss(x)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert not x.grad.isnan().any()
