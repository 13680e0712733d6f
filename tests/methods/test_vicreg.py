"""VICReg against the equations of the paper, written as loops, and against lightly's loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.vicreg import variance_terms, vicreg_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_views
from utils.view_features import ViewFeatures


def naive_terms(z):
    """Eq. 1 to 4, an entry of the covariance at a time; z: (n, D)."""
    n, d = z.shape
    mean = [sum(float(z[k, i]) for k in range(n)) / n for i in range(d)]
    variance = covariance = 0.0
    for i in range(d):
        for j in range(d):
            c = sum((float(z[k, i]) - mean[i]) * (float(z[k, j]) - mean[j]) for k in range(n)) / (n - 1)
            if i == j:
                variance += max(0.0, 1 - (c + 1e-4) ** 0.5) / d
            else:
                covariance += c**2 / d
    return variance, covariance


def naive_vicreg(z, large, sim, std, cov):
    """Eq. 6 with the official code's factors; the paper's two terms of two views are twice a mean."""
    n, d = z[0].shape
    pairs = [(a, b) for b in range(large) for a in range(len(z)) if a != b]
    invariance = sum(
        (float(z[a][k, i]) - float(z[b][k, i])) ** 2 / (n * d) for a, b in pairs for k in range(n) for i in range(d)
    )
    terms = [naive_terms(view) for view in z]
    variance, covariance = (sum(term) / len(z) for term in zip(*terms, strict=True))
    return torch.tensor(
        sim * invariance / len(pairs) + std * 2 * variance / 2 + cov * 2 * covariance, dtype=torch.double
    )


@pytest.mark.parametrize(("views", "n", "d"), [(2, 2, 3), (2, 5, 4), (2, 4, 7), (3, 6, 4), (5, 3, 5)])
@pytest.mark.parametrize("weights", [(25, 25, 1), (0.5, 2, 3)])
def test_vicreg_loss_agrees_with_the_formula(views, n, d, weights):
    z = [0.6 * view for view in random_views(views, n, d)]  # on both sides of the hinge
    assert_close(vicreg_loss(z, 2, *weights)["loss"], naive_vicreg(z, 2, *weights), rtol=1e-12, atol=1e-12)


def test_vicreg_loss_worked_out_by_hand():
    """Deviation 2 / sqrt(3) in both coordinates of view 1, which are equal; view 2 is constant at distance 1."""
    z1 = torch.tensor([[1.0, 1], [1, 1], [-1, -1], [-1, -1]], dtype=torch.double)
    out = vicreg_loss([z1, torch.zeros(4, 2, dtype=torch.double)], 2, 25, 25, 1)
    assert out["invariance"].item() == pytest.approx(1)
    assert out["variance"].item() == pytest.approx((0 + 0.99) / 2), "the root of 1e-4 is 0.01"
    assert out["covariance"].item() == pytest.approx((4 / 3) ** 2 / 2), "mean of 2 * (4 / 3)^2 / 2 and 0"
    assert out["loss"].item() == pytest.approx(25 + 25 * 0.99 / 2 + (4 / 3) ** 2)


def test_vicreg_loss_is_zero_for_equal_views_with_large_and_uncorrelated_coordinates():
    z = 3 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.double)
    assert vicreg_loss([z, z], 2, 25, 25, 1)["loss"] < 1e-12


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), small=st.integers(0, 2))
@settings(max_examples=15, deadline=None)
def test_vicreg_loss_ignores_order_of_images_coordinates_and_large_views_and_a_shift_of_all(seed, n, small):
    z = random_views(2 + small, n, 4, seed)
    loss = vicreg_loss(z, 2, 25, 25, 1)["loss"]
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(n, generator=g), torch.randperm(4, generator=g)
    assert_close(vicreg_loss([x[rows][:, columns] for x in z], 2, 25, 25, 1)["loss"], loss)
    assert_close(vicreg_loss([z[1], z[0], *z[2:]], 2, 25, 25, 1)["loss"], loss)
    assert_close(vicreg_loss([x + 7 for x in z], 2, 25, 25, 1)["loss"], loss)
    assert loss >= 0


@pytest.mark.parametrize("n", [3, 4, 5])
def test_variance_terms_of_few_and_of_many_images_agree(n):
    """Fewer images than coordinates take the matrix of images; each image twice takes that of coordinates."""
    z = random_views(1, n, 4)[0]
    v, c = variance_terms(z)
    v2, c2 = variance_terms(z.repeat(2, 1) * ((2 * n - 1) / (2 * n - 2)) ** 0.5)  # the same unbiased covariance
    assert_close(v, v2)
    assert_close(c, c2)


def test_vicreg_loss_gradient_agrees_with_finite_differences():
    for n, d in ((3, 5), (5, 3)):
        z = [v.requires_grad_() for v in random_views(3, n, d)]
        assert torch.autograd.gradcheck(lambda *z: vicreg_loss(list(z), 2, 25, 25, 1)["loss"], z)


@pytest.mark.parametrize(("n", "d"), [(6, 9), (9, 6), (2, 4)])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 2.0, 3.0)])
def test_vicreg_loss_and_gradient_agree_with_lightly(n, d, weights):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    own, other = ([0.7 * v for v in random_views(2, n, d)] for _ in range(2))
    own, other = ([v.requires_grad_() for v in views] for views in (own, other))
    loss = vicreg_loss(own, 2, *weights)["loss"]
    reference = lightly.VICRegLoss(*weights)(*other)
    assert_close(loss, reference, rtol=0, atol=1e-6)
    loss.backward()
    reference.backward()
    for a, b in zip(own, other, strict=True):
        assert_close(a.grad, b.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vicreg_loss_is_computed_in_float32(dtype):
    z = [v.to(dtype) for v in random_views(2, 6, 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = vicreg_loss(z, 2, 25, 25, 1)["loss"]
    assert half.dtype == torch.float32
    assert_close(half.double(), vicreg_loss([v.double() for v in z], 2, 25, 25, 1)["loss"], rtol=1e-5, atol=1e-5)


def test_training_loss_has_the_weights_of_the_flags_and_the_heads_of_the_paper():
    torch.manual_seed(0)
    words = ["--batch_size", "4", "--sim_coeff", "2", "--std_coeff", "3", "--cov_coeff", "5"]
    method = build_method("vicreg", Flat(12), 6, *words)
    out = method.training_loss(ViewFeatures([torch.randn(8, 6) for _ in range(2)], []), None)
    assert_close(out["loss"], 2 * out["invariance"] + 3 * out["variance"] + 10 * out["covariance"])
    linear = [m for m in method.projector if isinstance(m, torch.nn.Linear)]
    assert [m.bias is None for m in linear] == [True] * 3
    assert isinstance(method.projector[-1], torch.nn.Linear)
