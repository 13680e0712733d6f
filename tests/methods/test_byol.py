"""BYOL against its equation, written as loops, and its target network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.byol import BYOL, byol_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch, random_views
from utils.errors import UserError


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def naive_byol(p, target):
    """One image and one pair of views at a time; twice the mean over pairs is the paper's sum for two views."""
    values = [
        2 - 2 * cosine(p[v][i], target[t][i]) for t in range(len(target)) for v in range(len(p)) if v != t
        for i in range(len(target[0]))
    ]  # fmt: skip
    return torch.tensor(2 * sum(values) / len(values), dtype=torch.double)


@pytest.mark.parametrize("v", [2, 3, 8])
def test_byol_loss_agrees_with_the_formula(v):
    p, target = random_views(v, 5, 4, 1), random_views(2, 5, 4, 2)
    assert_close(byol_loss(p, target)["loss"], naive_byol(p, target), rtol=0, atol=1e-12)


def test_byol_loss_of_two_views_is_the_papers_sum():
    p, z = random_views(2, 5, 4, 1), random_views(2, 5, 4, 2)
    c12, c21 = (torch.cosine_similarity(a, b).mean() for a, b in ((p[0], z[1]), (p[1], z[0])))
    assert_close(byol_loss(p, z)["loss"], (2 - 2 * c12) + (2 - 2 * c21))


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), small=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_byol_loss_ignores_order_and_scale_and_reaches_its_bound(seed, n, small):
    p, z = random_views(2 + small, n, 5, seed), random_views(2, n, 5, seed + 1)
    value = byol_loss(p, z)["loss"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(byol_loss([x[order] for x in p], [x[order] for x in z])["loss"], value)
    assert_close(byol_loss([3 * x for x in p], [0.1 * x for x in z])["loss"], value)
    assert value >= -1e-12
    assert_close(byol_loss([z[0]] * (2 + small), [z[0]] * 2)["loss"], torch.tensor(0.0, dtype=torch.double))


def test_byol_loss_stops_the_gradient_of_the_targets():
    p, z = ([x.requires_grad_() for x in random_views(2, 4, 3, seed)] for seed in (1, 2))
    byol_loss(p, z)["loss"].backward()
    assert all(x.grad is None for x in z)
    assert all(x.grad.abs().sum() > 0 for x in p)


def test_target_std_shows_collapse():
    p, spread = random_views(2, 500, 16), random_views(2, 500, 16, 1)
    assert byol_loss(p, spread)["target_std"].item() == pytest.approx(16**-0.5, rel=0.05)
    assert byol_loss(p, [torch.ones(500, 16)] * 2)["target_std"] < 1e-6


@pytest.mark.parametrize("small", [0, 2])
def test_byol_compares_with_the_target_network(small):
    torch.manual_seed(0)
    method = build_method("byol", Flat(12), 6, "--batch_size", "8", "--small_views", str(small))
    b = random_batch(8, 2 + small)
    for p in method.target.teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    out = method.compute_losses(b)
    p = [method.predictor(method.projector(method.backbone(v))) for v in b.views]
    target = [method.target.teacher(v) for v in b.views[:2]]
    assert_close(out["loss"], byol_loss(p, target)["loss"])
    out["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


def test_length_defaults_change_after_300_epochs():
    assert BYOL.length_defaults(300) == BYOL.length_defaults(100) == {"tau": 0.99, "lr": 0.45, "weight_decay": 1e-6}
    assert BYOL.length_defaults(301) == {"tau": 0.996, "lr": 0.2, "weight_decay": 1.5e-6}


@pytest.mark.parametrize("small", [0, 2])
def test_neighbours_replace_the_embeddings_of_the_target_network(small):
    torch.manual_seed(0)
    words = ("--neighbours", "--queue_size", "20", "--batch_size", "8", "--small_views", str(small))
    method, b = build_method("byol", Flat(12), 6, *words), random_batch(8, 2 + small)
    rows = method.queue.rows.clone()
    out = method.compute_losses(b)
    p = [method.predictor(method.projector(method.backbone(v))) for v in b.views]
    target = [torch.nn.functional.normalize(method.target.teacher(v), dim=1) for v in b.views[:2]]
    assert_close(out["loss"], byol_loss(p, [rows[(t @ rows.T).argmax(dim=1)] for t in target])["loss"])
    assert_close(out["target_std"], byol_loss(p, target)["target_std"])
    method.queue.after_optimizer_step()
    assert_close(method.queue.rows[:8], target[0])
    assert torch.equal(method.queue.rows[8:], rows[8:])


def test_neighbours_need_a_queue_of_a_global_batch():
    with pytest.raises(UserError, match=r"--queue_size 40 .* 64"):
        build_method("byol", Flat(12), 6, "--neighbours", "--queue_size", "40", "--batch_size", "64")
    assert build_method("byol", Flat(12), 6, "--batch_size", "64").queue is None
