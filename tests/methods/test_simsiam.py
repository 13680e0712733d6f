"""SimSiam against its equation, written as loops, and its heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from methods.simsiam import simsiam_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch, random_views
from utils.view_features import ViewFeatures


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def naive_simsiam(p, z):
    """One image and one pair of views at a time; the mean over pairs is the paper's sum of halves for two views."""
    values = [
        -cosine(p[v][i], z[t][i]) for t in range(len(z)) for v in range(len(p)) if v != t for i in range(len(z[0]))
    ]
    return torch.tensor(sum(values) / len(values), dtype=torch.double)


@pytest.mark.parametrize("v", [2, 3, 8])
def test_simsiam_loss_agrees_with_the_formula(v):
    p, z = random_views(v, 5, 4, 1), random_views(2, 5, 4, 2)
    assert_close(simsiam_loss(p, z)["loss"], naive_simsiam(p, z), rtol=0, atol=1e-12)


def test_simsiam_loss_of_two_views_is_the_papers_sum():
    p, z = random_views(2, 5, 4, 1), random_views(2, 5, 4, 2)
    c12, c21 = (torch.cosine_similarity(a, b).mean() for a, b in ((p[0], z[1]), (p[1], z[0])))
    assert_close(simsiam_loss(p, z)["loss"], -c12 / 2 - c21 / 2)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), small=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_simsiam_loss_ignores_order_and_scale_and_reaches_its_bound(seed, n, small):
    p, z = random_views(2 + small, n, 5, seed), random_views(2, n, 5, seed + 1)
    value = simsiam_loss(p, z)["loss"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(simsiam_loss([x[order] for x in p], [x[order] for x in z])["loss"], value)
    assert_close(simsiam_loss([3 * x for x in p], [0.1 * x for x in z])["loss"], value)
    assert value >= -1 - 1e-12
    assert_close(simsiam_loss([z[0]] * (2 + small), [z[0]] * 2)["loss"], torch.tensor(-1.0, dtype=torch.double))


def test_simsiam_loss_stops_the_gradient_of_the_targets():
    p, z = ([x.requires_grad_() for x in random_views(2, 4, 3, seed)] for seed in (1, 2))
    simsiam_loss(p, z)["loss"].backward()
    assert all(x.grad is None for x in z)
    assert all(x.grad.abs().sum() > 0 for x in p)


def test_z_std_shows_collapse():
    p, spread = random_views(2, 500, 16), random_views(2, 500, 16, 1)
    assert simsiam_loss(p, spread)["z_std"].item() == pytest.approx(16**-0.5, rel=0.05)
    assert simsiam_loss(p, [torch.ones(500, 16)] * 2)["z_std"] < 1e-6


def build(*words):
    torch.manual_seed(0)
    return build_method("simsiam", Flat(12), 6, "--batch_size", "8", *words)


@pytest.mark.parametrize("small", [0, 2])
def test_simsiam_predicts_the_projections(small):
    method, b = build("--small_views", str(small)), random_batch(8, 2 + small)
    z = [method.projector(method.backbone(v)) for v in b.views]
    feats = [method.backbone(v) for v in b.views]
    out = method.training_loss(ViewFeatures(feats[:2], feats[2:]), b)
    assert_close(out["loss"], simsiam_loss([method.predictor(x) for x in z], z[:2])["loss"])


def test_simsiam_heads_are_the_papers():
    method = build()
    assert [type(m) for m in method.projector] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert [m.affine for m in method.projector if isinstance(m, nn.BatchNorm1d)] == [True, True, False]
    assert [type(m) for m in method.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_simsiam_predictor_keeps_its_learning_rate():
    method = build("--epochs", "10")
    method.trainer = None
    made = method.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for _ in range(method.plan.schedule.total_steps):
        optimizer.step()
        scheduler.step()
    predictor = {id(p) for p in method.predictor.parameters()}
    for group in optimizer.param_groups:
        inside = {id(p) in predictor for p in group["params"]}
        assert len(inside) == 1
        assert group["lr"] == pytest.approx(method.plan.optimizer.lr if inside == {True} else 0, abs=1e-9)


@pytest.mark.parametrize("small", [0, 2])
def test_neighbours_replace_the_embeddings_of_the_other_view(small):
    torch.manual_seed(0)
    words = ("--neighbours", "--queue_size", "20", "--batch_size", "8", "--small_views", str(small))
    method, b = build_method("simsiam", Flat(12), 6, *words), random_batch(8, 2 + small)
    rows = method.queue.rows.clone()
    out = method.compute_losses(b)
    z = [method.projector(method.backbone(v)) for v in b.views]
    p, unit = [method.predictor(x) for x in z], [torch.nn.functional.normalize(x, dim=1) for x in z[:2]]
    assert_close(out["loss"], simsiam_loss(p, [rows[(x @ rows.T).argmax(dim=1)] for x in unit])["loss"])
    assert_close(out["z_std"], simsiam_loss(p, z[:2])["z_std"])
    method.queue.after_optimizer_step()
    assert_close(method.queue.rows[:8], unit[0])
    assert torch.equal(method.queue.rows[8:], rows[8:])
