"""ReSSL against its formula, written as loops, and which network sees which view."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from cli.plan import _views
from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from data.views import view_specs
from methods import METHODS
from methods.ressl import ressl_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch
from utils import row_chunks
from utils.errors import UserError


def unit(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.double, generator=generator), dim=1)


def softmax(z, rows, t):
    powers = [math.exp(float(z @ q) / t) for q in rows]
    return [power / sum(powers) for power in powers]


@torch.no_grad()
def naive_ressl(strong, weak, rows, t_s, t_t):
    """One strong view, one image and one row of the queue at a time."""
    total = 0.0
    for view in strong:
        for s, w in zip(view, weak, strict=True):
            total -= sum(
                p * math.log(q) for p, q in zip(softmax(w, rows, t_t), softmax(s, rows, t_s), strict=True)
            )  # fmt: skip
    return torch.tensor(total / (len(strong) * len(weak)), dtype=torch.double)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("temperatures", [(0.1, 0.04), (0.5, 0.5)])
def test_ressl_loss_agrees_with_the_formula(views, temperatures):
    strong, weak, rows = [unit(5, 6, i) for i in range(views)], unit(5, 6, 7), unit(9, 6, 8)
    expected = naive_ressl(strong, weak, rows, *temperatures)
    assert_close(ressl_loss(strong, weak, rows, *temperatures)["loss"], expected, rtol=0, atol=1e-10)


def test_ressl_loss_of_equal_rows_is_the_log_of_the_queue():
    out = ressl_loss([unit(4, 6)], unit(4, 6, 1), unit(1, 6, 2).expand(11, 6), 0.1, 0.04)
    for value in out.values():
        assert value.item() == pytest.approx(math.log(11))


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), t_t=st.floats(0.02, 1.0))
@settings(max_examples=30, deadline=None)
def test_ressl_loss_ignores_orders_and_rotations_and_reaches_the_entropy_of_its_target(seed, n, t_t):
    strong, weak, rows = unit(n, 5, seed), unit(n, 5, seed + 1), unit(12, 5, seed + 2)
    loss = ressl_loss([strong], weak, rows, 0.1, t_t)["loss"]
    g = torch.Generator().manual_seed(seed)
    images, keys = torch.randperm(n, generator=g), torch.randperm(12, generator=g)
    assert_close(ressl_loss([strong[images]], weak[images], rows[keys], 0.1, t_t)["loss"], loss)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double, generator=g)).Q
    assert_close(ressl_loss([strong @ turn], weak @ turn, rows @ turn, 0.1, t_t)["loss"], loss)
    out = ressl_loss([strong], weak, rows, t_t, t_t)
    assert out["loss"] >= out["target_entropy"] - 1e-12
    same = ressl_loss([weak], weak, rows, t_t, t_t)
    assert_close(same["loss"], same["target_entropy"])


def test_ressl_loss_gradient_agrees_with_finite_differences_and_stops_at_the_teacher():
    strong, weak = [unit(3, 4, i).requires_grad_() for i in range(2)], unit(3, 4, 5).requires_grad_()
    rows = unit(6, 4, 6)
    assert torch.autograd.gradcheck(lambda *x: ressl_loss(list(x), weak, rows, 0.5, 0.3)["loss"], strong)
    ressl_loss(strong, weak, rows, 0.5, 0.3)["loss"].backward()
    assert weak.grad is None


def test_ressl_loss_is_the_same_in_chunks(monkeypatch):
    strong, weak, rows = unit(7, 4).requires_grad_(), unit(7, 4, 1), unit(10, 4, 2)
    whole = ressl_loss([strong, strong], weak, rows, 0.1, 0.04)["loss"]
    (expected,) = torch.autograd.grad(whole, strong)
    monkeypatch.setattr(row_chunks, "MAX_ENTRIES", 60)
    parts = ressl_loss([strong, strong], weak, rows, 0.1, 0.04)["loss"]
    assert_close(parts, whole)
    assert_close(torch.autograd.grad(parts, strong)[0], expected)


def test_ressl_loss_takes_similarities_in_float32_under_autocast():
    strong, weak, rows = (unit(*shape).float() for shape in ((8, 16, 0), (8, 16, 1), (50, 16, 2)))
    expected = ressl_loss([strong], weak, rows, 0.1, 0.04)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ressl_loss([strong], weak, rows, 0.1, 0.04)["loss"], expected)


def build(*words):
    torch.manual_seed(0)
    return build_method("ressl", Flat(12), 6, "--batch_size", "4", *words).double()


@pytest.mark.parametrize("small", [0, 2])
def test_strong_and_small_views_go_to_the_student_and_the_weak_one_to_the_teacher(small):
    method, b = build("--small_views", str(small)), random_batch(4, 2 + small, dtype=torch.double)
    for p in method.target.teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    rows = method.queue.rows.clone()
    out = method.compute_losses(b)
    strong = [F.normalize(method.projector(method.backbone(v)), dim=1) for v in (b.views[0], *b.views[2:])]
    weak = F.normalize(method.target.teacher(b.views[1]), dim=1)
    assert_close(out["loss"].detach(), naive_ressl(strong, weak, rows, 0.1, 0.04))
    out["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    assert all(p.grad is not None for p in [*method.backbone.parameters(), *method.projector.parameters()])


def test_embeddings_of_the_weak_view_enter_the_queue_after_the_step():
    method, b = build(), random_batch(4, 2, dtype=torch.double)
    before = method.queue.rows.clone()
    first = method.compute_losses(b)["loss"]
    assert torch.equal(method.queue.rows, before), "the loss must not move the queue"
    assert_close(method.compute_losses(b)["loss"], first)
    method.queue.discard()
    weak = F.normalize(method.target.teacher(b.views[1]), dim=1)
    method.compute_losses(b)
    method.after_optimizer_step()
    assert_close(method.queue.rows[:4], weak)
    assert torch.equal(method.queue.rows[4:], before[4:])


@pytest.mark.parametrize("steps", [0, 30_000])
def test_decay_of_the_teacher_is_constant(steps):
    method, expected = build("--tau", "0.9"), []
    method.optimizer_steps = steps
    for teacher, student in zip(method.target.teacher.parameters(), method.backbone.parameters(), strict=False):
        student.data += 1.0
        expected.append(0.9 * teacher + 0.1 * student)
    method.after_optimizer_step()
    for teacher, value in zip(method.target.teacher.parameters(), expected, strict=False):
        assert_close(teacher, value.detach())


def test_views_are_one_strong_and_one_weak_one_and_small_views_are_strong():
    args = [parse_pretraining(["imagenet", "resnet18", "--method", "ressl", *more], METHODS, DATASETS)
            for more in ([], ["--small_views", "1"])]  # fmt: skip
    strong, weak = view_specs(_views(args[0]), 2)
    assert (strong.jitter, strong.gray, strong.blur) == (0.8, 0.2, 0.5)
    assert (weak.jitter, weak.gray, weak.blur, weak.solarize, weak.flip) == (0, 0, 0, 0, 0.5)
    *_, small = view_specs(_views(args[1]), 2)
    assert dataclasses.replace(small, size=224, scale=(0.2, 1.0)) == strong


def test_queue_smaller_than_the_global_batch_is_an_error():
    with pytest.raises(UserError, match=r"--queue_size 40 .* 64"):
        build_method("ressl", Flat(12), 6, "--batch_size", "32", "--accumulate", "2")
