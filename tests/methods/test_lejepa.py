"""LeJEPA and SIGReg against their formulas, written as loops, and the random directions."""

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.lejepa import lejepa_loss, random_directions, sigreg
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch, random_views
from utils import row_chunks

MOMENTS = [math.sqrt(2 * math.pi / k) * math.erf(3 * math.sqrt(k / 2)) for k in (1, 2, 3)]  # of exp(-k t^2 / 2)


def unit_columns(d, m, seed=0):
    columns = torch.randn(d, m, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    return columns / columns.norm(dim=0)


def naive_statistic(x):
    """N times the weighted squared distance of characteristic functions, on 33 knots over [-3, 3]; x: N numbers."""
    n, total, width = len(x), 0.0, 3 / 16
    for knot in range(-16, 17):
        t = knot * width
        phi = sum(cmath.exp(1j * t * value) for value in x) / n
        value = abs(phi - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
        total += value * width * (0.5 if abs(knot) == 16 else 1)
    return n * total


def naive_sigreg(views, directions):
    values = [naive_statistic([float(z @ a) for z in view]) for view in views for a in directions.T]
    return torch.tensor(sum(values) / len(values), dtype=torch.double)


def naive_lejepa(views, num_center, directions, lamb):
    n, d = views[0].shape
    total = 0.0
    for i in range(n):
        for c in range(d):
            center = sum(float(view[i, c]) for view in views[:num_center]) / num_center
            total += sum((center - float(view[i, c])) ** 2 for view in views)
    prediction = total / (n * d * len(views))
    return (1 - lamb) * prediction + lamb * naive_sigreg(views, directions)


@pytest.mark.parametrize(("v", "n"), [(1, 3), (2, 5), (4, 2)])
def test_sigreg_agrees_with_the_formula(v, n):
    views, directions = random_views(v, n, 4), unit_columns(4, 6)
    assert_close(sigreg(views, directions), naive_sigreg(views, directions), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_center", [2, 4])
@pytest.mark.parametrize("lamb", [0.0, 0.05, 1.0])
def test_lejepa_loss_agrees_with_the_formula(num_center, lamb):
    views, directions = random_views(4, 3, 4), unit_columns(4, 5)
    out = lejepa_loss(views, num_center, directions, lamb)
    assert_close(out["loss"], naive_lejepa(views, num_center, directions, lamb), rtol=0, atol=1e-10)
    assert_close(out["loss"], (1 - lamb) * out["prediction"] + lamb * out["sigreg"])


def test_sigreg_of_a_point_is_its_integral_times_the_number_of_images():
    """All embeddings zero: the characteristic function is 1, and the integral one of exp(-t^2 / 2) and its powers."""
    expected = MOMENTS[0] - 2 * MOMENTS[1] + MOMENTS[2]
    for n in (1, 7):
        value = sigreg([torch.zeros(n, 3, dtype=torch.double)], unit_columns(3, 2)).item()
        assert value == pytest.approx(n * expected, rel=2e-3), "up to the error of the trapezoids"


def test_sigreg_of_normal_samples_has_its_expected_value_and_of_others_more():
    """E |phi_hat - phi|^2 = (1 - exp(-t^2)) / N for standard normal samples, so that N cancels."""
    expected = MOMENTS[0] - MOMENTS[2]
    assert expected == pytest.approx(1.05, abs=0.005)
    for n in (10, 40):
        views, directions = random_views(200, n, 64), unit_columns(64, 32)
        assert sigreg(views, directions).item() == pytest.approx(expected, rel=0.04)
        for change in (lambda z: 2 * z, lambda z: z / 2, lambda z: z + 1):
            assert sigreg([change(z) for z in views[:20]], directions) > 1.2 * expected


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), v=st.integers(2, 4))
@settings(max_examples=10, deadline=None)
def test_lejepa_loss_ignores_order_sign_and_rotation(seed, n, v):
    views, directions = random_views(v, n, 5, seed), unit_columns(5, 4, seed)
    value = lejepa_loss(views, 2, directions, 0.3)["loss"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rotation, _ = torch.linalg.qr(unit_columns(5, 5, seed + 1))
    assert_close(lejepa_loss([z[order] for z in views], 2, directions, 0.3)["loss"], value)
    assert_close(lejepa_loss([-z for z in views], 2, directions, 0.3)["loss"], value)
    assert_close(lejepa_loss([views[1], views[0], *views[2:]], 2, directions, 0.3)["loss"], value)
    assert_close(lejepa_loss([z @ rotation for z in views], 2, rotation.T @ directions, 0.3)["loss"], value)


def test_lejepa_loss_gradient_agrees_with_finite_differences():
    """The gradient passes through the centre too."""
    views = [z.requires_grad_() for z in random_views(3, 3, 4)]
    assert torch.autograd.gradcheck(lambda *z: lejepa_loss(list(z), 2, unit_columns(4, 3), 0.4)["loss"], views)


def test_lejepa_loss_agrees_with_that_of_lightly():
    pytest.importorskip("lightly", reason="the comparison with lightly needs lightly (requirements-bench.txt)")
    from lightly.loss.lejepa_loss import LeJEPALoss

    directions, theirs = unit_columns(6, 32), LeJEPALoss(lambda_param=0.05)
    theirs.sigreg._generate_unit_vectors = lambda *args, **kwargs: directions
    a, b = ([z.clone().requires_grad_() for z in random_views(5, 7, 6)] for _ in range(2))
    ours = lejepa_loss(a, 2, directions, 0.05)["loss"]
    expected = theirs(global_proj=torch.stack(b[:2]), local_proj=torch.stack(b[2:]))
    assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    for x, y in zip(torch.autograd.grad(ours, a), torch.autograd.grad(expected, b), strict=True):
        assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sigreg_takes_half_precision_embeddings_in_float32(dtype):
    z, directions = [x.to(dtype) for x in random_views(2, 6, 8)], unit_columns(8, 16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = sigreg(z, directions)
    assert half.dtype == torch.float32
    assert_close(half.double(), sigreg([x.double() for x in z], directions.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_sigreg_in_chunks_of_images_is_that_of_all_at_once(rows, monkeypatch):
    def value_and_gradients():
        views = [z.requires_grad_() for z in random_views(2, 7, 5)]
        value = sigreg(views, unit_columns(5, 4))
        return [value.detach(), *torch.autograd.grad(value, views)]

    full = value_and_gradients()
    monkeypatch.setattr(row_chunks, "MAX_ENTRIES", rows * 2 * 4 * 17 + 1)
    for part, expected in zip(value_and_gradients(), full, strict=True):
        assert_close(part, expected, rtol=1e-12, atol=1e-12)


def test_random_directions_are_a_function_of_seed_and_step():
    step = torch.tensor(5)
    a = random_directions(3, step, 16, 400)
    assert a.shape == (16, 400)
    assert_close(a.norm(dim=0), torch.ones(400))
    assert torch.equal(a, random_directions(3, step, 16, 400))
    assert_close(random_directions(3, step, 16, 200), a[:, :200])
    for other in (random_directions(4, step, 16, 400), random_directions(3, step + 1, 16, 400)):
        assert not torch.isclose(a, other).any(dim=0).all()


def test_random_directions_are_uniform_on_the_sphere():
    """The mean of a a^T is the identity over D, and the fourth moment of a coordinate that of the sphere."""
    d, count = 8, 40_000
    a = random_directions(0, torch.tensor(0), d, count).double()
    assert a.mean(dim=1).abs().max() < 4 * (d * count) ** -0.5
    assert_close(a @ a.T / count, torch.eye(d, dtype=torch.double) / d, rtol=0, atol=4 / d * count**-0.5)
    assert_close(a.pow(4).mean(dim=1), torch.full((d,), 3 / (d * (d + 2)), dtype=torch.double), rtol=0.06, atol=0)


def build(*words):
    torch.manual_seed(0)
    return build_method("lejepa", Flat(12), 6, "--batch_size", "8", *words)


@pytest.mark.parametrize(("words", "num_center"), [((), 2), (("--center_views", "all"), 4)])
def test_training_loss_compares_with_the_mean_of_the_center_views(words, num_center):
    method, b = build("--small_views", "2", *words), random_batch(8, 4)
    out = method.compute_losses(b)
    z = [method.projector(method.backbone(v)) for v in b.views]
    directions = random_directions(method.plan.seed, torch.tensor(0), 8, 16)
    assert_close(out["loss"], lejepa_loss(z, num_center, directions, 0.05)["loss"])


def test_each_optimizer_step_has_its_own_directions():
    method, b = build().eval(), random_batch(8, 2)
    first, again = (method.compute_losses(b)["sigreg"] for _ in range(2))
    assert torch.equal(first, again), "the batches of one step share their directions"
    method.optimizer_steps = 1
    second = method.compute_losses(b)["sigreg"]
    z = [method.projector(method.backbone(v)) for v in b.views]
    assert_close(second, sigreg(z, random_directions(method.plan.seed, torch.tensor(1), 8, 16)))
    assert second != first
