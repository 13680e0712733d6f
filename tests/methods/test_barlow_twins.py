"""Barlow Twins against the paper's equations, written as loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.barlow_twins import barlow_twins_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_views
from utils.view_features import ViewFeatures


def naive_barlow_twins(z1, z2, lamb):
    """Eq. 1 and 2, an entry of the cross-correlation at a time."""
    n, d = z1.shape
    a, b = ((z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
    total = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(float(a[k, i] * b[k, j]) for k in range(n)) / n
            total += (1 - c) ** 2 if i == j else lamb * c**2
    return torch.tensor(total, dtype=torch.double)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 4), (9, 7)])
@pytest.mark.parametrize("lamb", [0.0, 5e-3, 1.0])
def test_barlow_twins_loss_agrees_with_the_formula(n, d, lamb):
    z1, z2 = random_views(2, n, d)
    assert_close(barlow_twins_loss(z1, z2, lamb)["loss"], naive_barlow_twins(z1, z2, lamb), rtol=1e-10, atol=1e-10)


def test_barlow_twins_loss_of_two_coordinates_worked_out_by_hand():
    """C = [[1, 0], [0, -1]]: one coordinate agrees, the other is turned round, and they are not correlated."""
    z1 = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.double)
    out = barlow_twins_loss(z1, z1 * torch.tensor([1.0, -1.0]), 0.5)
    assert out["invariance"].item() == pytest.approx(4, rel=1e-4)
    assert out["redundancy"].item() == pytest.approx(0, abs=1e-9)


def test_barlow_twins_loss_of_redundant_coordinates_is_lambda_each():
    z = random_views(2, 6, 1)[0].repeat(1, 3)
    out = barlow_twins_loss(z, z, 0.1)
    assert out["redundancy"].item() == pytest.approx(6, rel=1e-4)
    assert out["loss"].item() == pytest.approx(0.6, rel=1e-4)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_barlow_twins_loss_ignores_order_scale_and_shift_and_is_not_negative(seed, n):
    z1, z2 = random_views(2, n, 4, seed)
    loss = barlow_twins_loss(z1, z2, 5e-3)["loss"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(barlow_twins_loss(z1[order], z2[order], 5e-3)["loss"], loss)
    assert_close(barlow_twins_loss(z2, z1, 5e-3)["loss"], loss)
    big = 1e6 * z1, 1e6 * z2  # so that the epsilon in the deviation counts for nothing
    assert_close(barlow_twins_loss(3 * big[0] + 1, big[1] - 7, 5e-3)["loss"], barlow_twins_loss(*big, 5e-3)["loss"])
    assert loss >= 0


def test_barlow_twins_loss_is_zero_for_equal_views_of_uncorrelated_coordinates():
    z = 100 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.double)
    assert barlow_twins_loss(z, z, 5e-3)["loss"] < 1e-9


def test_barlow_twins_loss_gradient_agrees_with_finite_differences():
    views = [v.requires_grad_() for v in random_views(2, 4, 3)]
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins_loss(a, b, 0.1)["loss"], views)


def test_training_loss_is_scaled_and_its_logged_parts_are_not():
    torch.manual_seed(0)
    words = ["--batch_size", "4", "--scale_loss", "0.5", "--lamb", "0.3"]
    method = build_method("barlow_twins", Flat(12), 6, *words)
    feats = [torch.randn(8, 6) for _ in range(2)]
    out = method.training_loss(ViewFeatures(feats, []), None)
    assert_close(out["loss"], 0.5 * (out["invariance"] + 0.3 * out["redundancy"]))
    assert [m.bias is None for m in method.projector if isinstance(m, torch.nn.Linear)] == [True] * 3
