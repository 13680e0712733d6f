"""Decoupled NT-Xent (DCL, DCLW) against its formula, written as loops; the others: tests/methods/test_simclr.py."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.helpers.networks import random_views
from utils.nt_xent import decoupled_nt_xent, other_views


def naive_dcl(views, t, sigma=None):
    """One positive pair at a time; the weight of DCLW is relative to the positive pairs of the same two views."""
    z = [[v / v.norm() for v in view] for view in views]
    v, n, values = len(z), len(z[0]), []
    for a in range(v):
        for b in range(v):
            for i in range(n if a != b else 0):
                negatives = sum(math.exp(z[a][i] @ z[c][k] / t) for c in range(v) for k in range(n) if k != i)
                weight = 1.0
                if sigma is not None:
                    f = [math.exp(z[a][k] @ z[b][k] / sigma) for k in range(n)]
                    weight = 2 - f[i] / (sum(f) / n)
                values.append(-weight * float(z[a][i] @ z[b][i]) / t + math.log(negatives))
    return torch.tensor(sum(values) / len(values), dtype=torch.double)


@pytest.mark.parametrize(("v", "n", "d"), [(2, 2, 7), (2, 5, 7), (4, 3, 7), (5, 3, 2)])
@pytest.mark.parametrize("t", [0.1, 1.0])
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_nt_xent_agrees_with_the_formula(v, n, d, t, sigma):
    views = random_views(v, n, d)
    assert_close(decoupled_nt_xent(views, t, sigma)["loss"], naive_dcl(views, t, sigma), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_nt_xent_of_identical_vectors_is_the_log_of_the_number_of_negatives(sigma):
    for v in (2, 4):
        one = [torch.ones(5, 8, dtype=torch.double)] * v
        expected = torch.tensor(4.0 * v, dtype=torch.double).log()
        assert_close(decoupled_nt_xent(one, 0.2, sigma)["loss"], expected)


def test_decoupled_nt_xent_of_known_angles():
    """Two images at right angles, whose views are 0 and 60 degrees from each other: w = 1, the negatives are zero."""
    a = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.double)
    b = torch.tensor([[0.5, 0.75**0.5, 0, 0], [0, 0, 0.5, 0.75**0.5]], dtype=torch.double)
    for sigma in (None, 0.5):
        out = decoupled_nt_xent([a, b], 0.5, sigma)
        assert out["loss"].item() == pytest.approx(-1 + math.log(2), abs=1e-12)
        assert out["positive_similarity"].item() == pytest.approx(0.5, abs=1e-12)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), t=st.floats(0.05, 2.0), sigma=st.sampled_from([None, 0.5]))
@settings(max_examples=20, deadline=None)
def test_decoupled_nt_xent_ignores_order_of_images_and_views_and_scale(seed, n, t, sigma):
    a, b = random_views(2, n, 5, seed)
    loss = decoupled_nt_xent([a, b], t, sigma)["loss"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(decoupled_nt_xent([a[order], b[order]], t, sigma)["loss"], loss)
    assert_close(decoupled_nt_xent([b, a], t, sigma)["loss"], loss)
    assert_close(decoupled_nt_xent([3 * a, 0.1 * b], t, sigma)["loss"], loss)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_nt_xent_gradient_is_that_of_constant_weights(sigma):
    """Finite differences of the loss with the weights that the first point has."""
    views = random_views(2, 3, 4)
    z = [v / v.norm(dim=1, keepdim=True) for v in views]
    f = ((z[0] * z[1]).sum(dim=1) / sigma).exp() if sigma else torch.ones(3, dtype=torch.double)
    weights = 2 - f / f.mean()

    def constant_weights(*views):
        z = [v / v.norm(dim=1, keepdim=True) for v in views]
        positive = (z[0] * z[1]).sum(dim=1) / 0.5
        return decoupled_nt_xent(list(views), 0.5)["loss"] + ((1 - weights) * positive).mean()

    inputs = [v.clone().requires_grad_() for v in views]
    assert torch.autograd.gradcheck(constant_weights, inputs)
    expected = torch.autograd.grad(constant_weights(*inputs), inputs)
    for x, y in zip(torch.autograd.grad(decoupled_nt_xent(inputs, 0.5, sigma)["loss"], inputs), expected, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_nt_xent_agrees_with_that_of_lightly(sigma):
    pytest.importorskip("lightly", reason="the comparison with lightly needs lightly (requirements-bench.txt)")
    from lightly.loss.dcl_loss import DCLLoss, DCLWLoss

    a, b = ([z.clone().requires_grad_() for z in random_views(2, 9, 6)] for _ in range(2))
    ours = decoupled_nt_xent(a, 0.1, sigma)["loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # DCLWLoss makes a tensor of a tensor
        expected = (DCLLoss(0.1) if sigma is None else DCLWLoss(0.1, sigma))(*b)
    assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    for x, y in zip(torch.autograd.grad(ours, a), torch.autograd.grad(expected, b), strict=True):
        assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoupled_nt_xent_compares_half_precision_embeddings_in_float32(dtype):
    a, b = (v.to(dtype) for v in random_views(2, 6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = decoupled_nt_xent([a, b], 0.05, 0.5)["loss"]
    assert half.dtype == torch.float32
    assert_close(half.double(), decoupled_nt_xent([a.double(), b.double()], 0.05, 0.5)["loss"], rtol=1e-5, atol=1e-5)


def test_other_views_are_all_rows_of_the_image_but_the_own_one():
    expected = [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]
    assert other_views(torch.arange(6), 3).tolist() == expected
    assert other_views(torch.tensor([4]), 3).tolist() == [expected[4]]
