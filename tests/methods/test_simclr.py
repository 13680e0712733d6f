"""NT-Xent against the paper's formula, written as loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.simclr import nt_xent, supcon
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch, random_views
from utils.batch import Batch
from utils.errors import UserError
from utils.nt_xent import decoupled_nt_xent


def naive_nt_xent(views, t):
    """Eq. 1 of the paper, a term at a time: every ordered pair of distinct views of one image."""
    z = [[v / v.norm() for v in view] for view in views]
    all_views = [(k, i) for k in range(len(z)) for i in range(len(z[0]))]
    total, pairs = 0.0, 0
    for k, i in all_views:
        others = sum(math.exp(z[k][i] @ z[m][j] / t) for m, j in all_views if (m, j) != (k, i))
        for m in range(len(z)):
            if m != k:
                total -= math.log(math.exp(z[k][i] @ z[m][i] / t) / others)
                pairs += 1
    return torch.tensor(total / pairs, dtype=torch.double)


@pytest.mark.parametrize(("v", "n"), [(2, 2), (2, 5), (3, 4), (8, 3)])
@pytest.mark.parametrize("t", [0.1, 0.5, 2.0])
def test_nt_xent_agrees_with_the_formula(v, n, t):
    views = random_views(v, n, 7)
    assert_close(nt_xent(views, t)["loss"], naive_nt_xent(views, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("v", [2, 4])
def test_nt_xent_of_identical_vectors_is_the_log_of_the_number_of_choices(v):
    one = [torch.ones(5, 8, dtype=torch.double)] * v
    assert_close(nt_xent(one, 0.2)["loss"], torch.tensor(5.0 * v - 1, dtype=torch.double).log())


def test_nt_xent_of_known_angles():
    """Two images, views at 0 and 60 degrees of each other, the images at right angles."""
    a = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.double)
    b = torch.tensor([[0.5, 0.75**0.5, 0, 0], [0, 0, 0.5, 0.75**0.5]], dtype=torch.double)
    expected = -math.log(math.exp(0.5) / (math.exp(0.5) + 2))
    out = nt_xent([a, b], 1.0)
    assert out["loss"].item() == pytest.approx(expected, abs=1e-12)
    assert out["positive_similarity"].item() == pytest.approx(0.5, abs=1e-12)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), t=st.floats(0.05, 2.0))
@settings(max_examples=30, deadline=None)
def test_nt_xent_ignores_order_of_images_and_views_and_scale(seed, n, t):
    a, b = random_views(2, n, 5, seed)
    loss = nt_xent([a, b], t)["loss"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(nt_xent([a[order], b[order]], t)["loss"], loss)
    assert_close(nt_xent([b, a], t)["loss"], loss)
    assert_close(nt_xent([3 * a, 0.1 * b], t)["loss"], loss)


@given(seed=st.integers(0, 2**31), t=st.floats(0.1, 2.0))
@settings(max_examples=30, deadline=None)
def test_nt_xent_has_a_lower_bound(seed, t):
    """No embedding does better than agreeing views with every other image opposite."""
    n = 4
    loss = nt_xent(random_views(2, n, 5, seed), t)["loss"]
    assert loss >= math.log(1 + (2 * n - 2) * math.exp(-2 / t)) - 1e-9


def test_nt_xent_gradient_agrees_with_finite_differences():
    views = [v.requires_grad_() for v in random_views(2, 3, 4)]
    assert torch.autograd.gradcheck(lambda *z: nt_xent(list(z), 0.5)["loss"], views)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nt_xent_compares_half_precision_embeddings_in_float32(dtype):
    a, b = (v.to(dtype) for v in random_views(2, 6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = nt_xent([a, b], 0.05)["loss"]
    assert half.dtype == torch.float32
    assert_close(half.double(), nt_xent([a.double(), b.double()], 0.05)["loss"], rtol=1e-5, atol=1e-5)


def naive_supcon(views, labels, t):
    """Eq. 2 of SupCon, a positive at a time."""
    z = [(v[i] / v[i].norm(), i) for v in views for i in range(len(v))]
    total = 0.0
    for a, (x, i) in enumerate(z):
        others = [(y, j) for b, (y, j) in enumerate(z) if b != a]
        normalizer = sum(math.exp(x @ y / t) for y, _ in others)
        positives = [y for y, j in others if j == i or labels[j] == labels[i] >= 0]
        total -= sum(math.log(math.exp(x @ y / t) / normalizer) for y in positives) / len(positives)
    return torch.tensor(total / len(z), dtype=torch.double)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 1], [3, 3, 3, 3, 3], [0, -1, 1, -1, 0], [-1] * 5, [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("v", [2, 4])
@pytest.mark.parametrize("t", [0.1, 1.0])
def test_supcon_agrees_with_the_formula(labels, v, t):
    views = random_views(v, 5, 7)
    assert_close(supcon(views, torch.tensor(labels), t)["loss"], naive_supcon(views, labels, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("labels", [[4, 2, 0, 1, 3], [-1] * 5, [-1, 0, -1, 1, 2]])
def test_supcon_with_one_image_per_class_is_nt_xent(labels):
    views = random_views(3, 5, 7)
    a, b = supcon(views, torch.tensor(labels), 0.2), nt_xent(views, 0.2)
    assert_close(a["loss"], b["loss"], rtol=0, atol=1e-12)
    assert_close(a["positive_similarity"], b["positive_similarity"], rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), classes=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_supcon_ignores_order_names_of_classes_and_scale(seed, n, classes):
    g = torch.Generator().manual_seed(seed)
    (a, b), labels, order = (
        random_views(2, n, 5, seed),
        torch.randint(classes, (n,), generator=g),
        torch.randperm(n, generator=g),
    )
    loss = supcon([a, b], labels, 0.2)["loss"]
    assert_close(supcon([a[order], b[order]], labels[order], 0.2)["loss"], loss)
    assert_close(supcon([3 * a, 0.1 * b], 7 - labels, 0.2)["loss"], loss)
    one = [torch.ones(n, 5, dtype=torch.double)] * 2
    assert_close(supcon(one, labels, 0.2)["loss"], torch.tensor(2.0 * n - 1, dtype=torch.double).log())


def test_supcon_gradient_agrees_with_finite_differences():
    views = [v.requires_grad_() for v in random_views(2, 3, 4)]
    labels = torch.tensor([1, -1, 1])
    assert torch.autograd.gradcheck(lambda *z: supcon(list(z), labels, 0.5)["loss"], views)


def test_supervised_training_loss_reads_the_labels():
    torch.manual_seed(0)
    method = build_method("simclr", Flat(12), 6, "--batch_size", "4", "--supervised")
    b = Batch(torch.arange(4), [torch.randn(4, 3, 2, 2) for _ in range(2)], torch.tensor([1, 1, 2, -1]))
    z = [method.projector(method(v)) for v in b.views]
    assert_close(method.compute_losses(b)["loss"], supcon(z, b.labels, 0.1)["loss"])
    with pytest.raises(UserError, match=r"--supervised needs labels.*digits"):
        build_method("simclr", Flat(12), 6, "--supervised", classes=0)


@pytest.mark.parametrize("small", [0, 2])
@pytest.mark.parametrize(("words", "sigma"), [(["--decoupled"], None), (["--decoupled", "--decoupled_weights"], 0.5)])
def test_decoupled_training_loss_has_no_positives_in_the_denominator(words, sigma, small):
    torch.manual_seed(0)
    method = build_method("simclr", Flat(12), 6, "--batch_size", "4", "--small_views", str(small), *words)
    b = random_batch(4, 2 + small)
    z = [method.projector(method(v)) for v in b.views]
    assert_close(method.compute_losses(b)["loss"], decoupled_nt_xent(z, 0.1, sigma)["loss"])
    assert method.num_choices == 3 * (2 + small), "the views of the other images"


def test_decoupled_supervised_loss_is_refused():
    with pytest.raises(UserError, match="--supervised and --decoupled"):
        build_method("simclr", Flat(12), 6, "--supervised", "--decoupled")
