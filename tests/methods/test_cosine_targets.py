"""BYOL and SimSiam, which regress one view's embedding from another's, against their equations, written as loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from methods.base import ViewFeatures
from methods.byol import BYOL, byol_loss
from methods.simsiam import SimSiam, simsiam_loss
from tests.helpers.commands import plan_of
from tests.helpers.networks import Flat
from utils.batch import Batch

LOSSES = {"byol": byol_loss, "simsiam": simsiam_loss}


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def naive(name, p, z):
    """One image and one pair of views at a time; the paper's weights for two views, the same mean for more."""
    values = [
        cosine(p[v][i], z[target][i]) for target in range(len(z)) for v in range(len(p)) if v != target
        for i in range(len(z[0]))
    ]  # fmt: skip
    mean = sum(values) / len(values)
    return torch.tensor(2 * (2 - 2 * mean) if name == "byol" else -mean, dtype=torch.double)


def draw(v, n, d, seed=0):
    return list(torch.randn(v, n, d, dtype=torch.double, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("v", [2, 3, 8])
def test_agrees_with_the_formula(name, v):
    p, z = draw(v, 5, 4, 1), draw(2, 5, 4, 2)
    assert_close(LOSSES[name](p, z)["loss"], naive(name, p, z), rtol=0, atol=1e-12)


def test_two_views_are_the_papers_sums():
    p, z = draw(2, 5, 4, 1), draw(2, 5, 4, 2)
    c12, c21 = (torch.cosine_similarity(a, b).mean() for a, b in ((p[0], z[1]), (p[1], z[0])))
    assert_close(simsiam_loss(p, z)["loss"], -c12 / 2 - c21 / 2)
    assert_close(byol_loss(p, z)["loss"], (2 - 2 * c12) + (2 - 2 * c21))


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), small=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_order_and_scale_do_not_matter_and_the_bound_is_reached(name, seed, n, small):
    loss, bound = LOSSES[name], {"byol": 0.0, "simsiam": -1.0}[name]
    p, z = draw(2 + small, n, 5, seed), draw(2, n, 5, seed + 1)
    value = loss(p, z)["loss"]
    turn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(loss([x[turn] for x in p], [x[turn] for x in z])["loss"], value)
    assert_close(loss([3 * x for x in p], [0.1 * x for x in z])["loss"], value)
    assert value >= bound - 1e-12
    assert_close(loss([z[0]] * (2 + small), [z[0]] * 2)["loss"], torch.tensor(bound, dtype=torch.double))


@pytest.mark.parametrize("name", LOSSES)
def test_targets_get_no_gradient(name):
    p, z = ([x.requires_grad_() for x in draw(2, 4, 3, seed)] for seed in (1, 2))
    LOSSES[name](p, z)["loss"].backward()
    assert all(x.grad is None for x in z)
    assert all(x.grad.abs().sum() > 0 for x in p)


@pytest.mark.parametrize("name", LOSSES)
def test_collapse_is_seen(name):
    p, spread = draw(2, 500, 16), draw(2, 500, 16, 1)
    key = {"byol": "target_std", "simsiam": "z_std"}[name]
    assert LOSSES[name](p, spread)[key].item() == pytest.approx(16**-0.5, rel=0.05)
    assert LOSSES[name](p, [torch.ones(500, 16)] * 2)[key] < 1e-6


def batch(n=8, small=0):
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(n, 3, 2, 2, generator=g) for _ in range(2 + small)]
    return Batch(torch.arange(n), views, torch.arange(n) % 10)


def build(kind, name, *words):
    torch.manual_seed(0)
    return kind(plan_of(name, "--batch_size", "8", *words), Flat(12), 6)


@pytest.mark.parametrize("small", [0, 2])
def test_byol_compares_with_the_teacher(small):
    method, b = build(BYOL, "byol", "--small_views", str(small)), batch(small=small)
    for p in method.target.teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    out = method.compute_losses(b)
    p = [method.predictor(method.projector(method.backbone(v))) for v in b.views]
    target = [method.target.teacher(v) for v in b.views[:2]]
    assert_close(out["loss"], byol_loss(p, target)["loss"])
    out["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


@pytest.mark.parametrize("small", [0, 2])
def test_simsiam_predicts_the_projections(small):
    method, b = build(SimSiam, "simsiam", "--small_views", str(small)), batch(small=small)
    z = [method.projector(method.backbone(v)) for v in b.views]
    feats = [method.backbone(v) for v in b.views]
    out = method.training_loss(ViewFeatures(feats[:2], feats[2:]), b)
    assert_close(out["loss"], simsiam_loss([method.predictor(x) for x in z], z[:2])["loss"])


def test_simsiams_heads_are_the_papers():
    projector, predictor = build(SimSiam, "simsiam").projector, build(SimSiam, "simsiam").predictor
    kinds = [type(m) for m in projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert [m.affine for m in projector if isinstance(m, nn.BatchNorm1d)] == [True, True, False]
    assert [type(m) for m in predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_simsiams_predictor_keeps_its_rate():
    method = build(SimSiam, "simsiam", "--epochs", "10")
    method.trainer = None
    made = method.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for _ in range(method.args.total_steps):
        optimizer.step()
        scheduler.step()
    held = {id(p) for p in method.predictor.parameters()}
    for group in optimizer.param_groups:
        inside = {id(p) in held for p in group["params"]}
        assert len(inside) == 1
        assert group["lr"] == pytest.approx(method.args.scaled_lr if inside == {True} else 0, abs=1e-9)
