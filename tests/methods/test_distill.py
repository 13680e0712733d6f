"""Distillation against its formula, written as loops, and its frozen teacher."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from methods.distill import regression_loss, seed_loss
from tests.helpers.commands import TEACHER, build_method
from tests.helpers.networks import Flat, random_batch
from utils import row_chunks
from utils.errors import UserError


def unit(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.double, generator=generator), dim=1)


@torch.no_grad()
def naive_seed(student, teacher, rows, t_s, t_t):
    """One image and one key at a time."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        keys = [t, *rows]
        p, q = ([math.exp(float(z @ key) / temperature) for key in keys] for z, temperature in ((t, t_t), (s, t_s)))
        total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    return torch.tensor(total / len(student), dtype=torch.double)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("temperatures", [(0.2, 0.01), (0.5, 0.5)])
def test_seed_loss_agrees_with_the_formula(n, temperatures):
    student, teacher, rows = unit(n, 6), unit(n, 6, 1), unit(9, 6, 2)
    expected = naive_seed(student, teacher, rows, *temperatures)
    assert_close(seed_loss(student, teacher, rows, *temperatures)["loss"], expected, rtol=0, atol=1e-10)


def test_seed_loss_of_equal_vectors_is_the_log_of_the_number_of_keys():
    one = unit(1, 6)
    out = seed_loss(one.expand(4, 6), one.expand(4, 6), one.expand(11, 6), 0.2, 0.01)
    for value in out.values():
        assert value.item() == pytest.approx(math.log(12))


def test_seed_loss_with_cold_targets_is_the_infonce_of_lightly():
    """At the official temperature of 1e-4 the target is one-hot: SEED is then MoCo's loss with the teacher's keys."""
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    student, teacher, rows = unit(8, 16).requires_grad_(), unit(8, 16, 1), unit(50, 16, 2)
    theirs = loss.NTXentLoss(temperature=0.2, memory_bank_size=(50, 16))
    theirs.memory_bank.bank = rows.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    ours = seed_loss(student, teacher, rows, 0.2, 1e-4)["loss"]
    expected = theirs(student, teacher)
    assert_close(ours, expected, rtol=0, atol=1e-6)
    (found,), (reference,) = (torch.autograd.grad(x, student) for x in (ours, expected))
    radial = (found * student).sum(dim=1, keepdim=True) * student  # lightly normalizes its input once more
    assert_close(found - radial, reference, rtol=0, atol=1e-6)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), t_t=st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_seed_loss_ignores_orders_and_rotations_and_reaches_the_entropy_of_its_target(seed, n, t_t):
    student, teacher, rows = unit(n, 5, seed), unit(n, 5, seed + 1), unit(12, 5, seed + 2)
    loss = seed_loss(student, teacher, rows, 0.2, t_t)["loss"]
    g = torch.Generator().manual_seed(seed)
    images, keys = torch.randperm(n, generator=g), torch.randperm(12, generator=g)
    assert_close(seed_loss(student[images], teacher[images], rows[keys], 0.2, t_t)["loss"], loss)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double, generator=g)).Q
    assert_close(seed_loss(student @ turn, teacher @ turn, rows @ turn, 0.2, t_t)["loss"], loss)
    out = seed_loss(student, teacher, rows, t_t, t_t)
    assert out["loss"] >= out["target_entropy"] - 1e-12
    same = seed_loss(teacher, teacher, rows, t_t, t_t)
    assert_close(same["loss"], same["target_entropy"])


def test_seed_loss_gradient_agrees_with_finite_differences_and_stops_at_the_teacher():
    student, teacher, rows = unit(3, 4).requires_grad_(), unit(3, 4, 5).requires_grad_(), unit(6, 4, 6)
    assert torch.autograd.gradcheck(lambda s: seed_loss(s, teacher.detach(), rows, 0.5, 0.3)["loss"], student)
    (seed_loss(student, teacher, rows, 0.5, 0.3)["loss"] + regression_loss(student, teacher)["loss"]).backward()
    assert teacher.grad is None


def test_seed_loss_is_the_same_in_chunks(monkeypatch):
    student, teacher, rows = unit(7, 4).requires_grad_(), unit(7, 4, 1), unit(10, 4, 2)
    whole = seed_loss(student, teacher, rows, 0.2, 0.01)["loss"]
    (expected,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(row_chunks, "MAX_ENTRIES", 60)
    parts = seed_loss(student, teacher, rows, 0.2, 0.01)["loss"]
    assert_close(parts, whole)
    assert_close(torch.autograd.grad(parts, student)[0], expected)


def test_seed_loss_takes_similarities_in_float32_under_autocast():
    student, teacher, rows = (unit(*shape).float() for shape in ((8, 16, 0), (8, 16, 1), (50, 16, 2)))
    expected = seed_loss(student, teacher, rows, 0.2, 0.01)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(seed_loss(student, teacher, rows, 0.2, 0.01)["loss"], expected)


def test_regression_loss_is_twice_the_cosine_distance():
    student, teacher = unit(5, 6), unit(5, 6, 1)
    expected = sum(2 - 2 * float(s @ t) for s, t in zip(student, teacher, strict=True)) / 5
    assert regression_loss(student, teacher)["loss"].item() == pytest.approx(expected)
    assert regression_loss(teacher, teacher)["loss"] == 0
    assert regression_loss(-teacher, teacher)["loss"].item() == pytest.approx(4)


def build(*words):
    torch.manual_seed(0)
    return build_method("distill", Flat(12), 6, "--batch_size", "4", *words).double()


@pytest.mark.parametrize("regress", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_training_loss_compares_both_networks_on_the_same_view(views, regress):
    method = build("--small_views", str(views - 1), *["--regress"] * regress)
    b = random_batch(4, views, dtype=torch.double)
    queues = [] if regress else [method.queue, *[method.small_queue] * (views - 1)] if views > 1 else [method.queue]
    rows = [queue.rows.clone() for queue in queues]
    student = [F.normalize(method.projector(method.backbone(v)), dim=1) for v in b.views]
    teacher = [F.normalize(method.teacher.network(v), dim=1) for v in b.views]
    if regress:
        losses = [2 - 2 * (s * t).sum(dim=1).mean() for s, t in zip(student, teacher, strict=True)]
    else:
        losses = [naive_seed(*each, 0.2, 0.01) for each in zip(student, teacher, rows, strict=True)]
    out = method.train().compute_losses(b)
    assert_close(out["loss"].detach(), torch.stack(losses).mean().detach())
    cosines = [(s * t).sum(dim=1).mean() for s, t in zip(student, teacher, strict=True)]
    assert_close(out["teacher_similarity"], torch.stack(cosines).mean())


def test_embeddings_of_the_teacher_enter_the_queues_after_the_step():
    method, b = build("--small_views", "2"), random_batch(4, 3, dtype=torch.double)
    before = method.queue.rows.clone()
    first = method.compute_losses(b)["loss"]
    assert torch.equal(method.queue.rows, before), "the loss must not move the queue"
    method.queue.discard()
    method.small_queue.discard()
    assert_close(method.compute_losses(b)["loss"], first)
    method.after_optimizer_step()
    large, small, _ = (F.normalize(method.teacher.network(v), dim=1) for v in b.views)
    assert_close(method.queue.rows[:4], large)
    assert_close(method.small_queue.rows[:4], small)
    assert torch.equal(method.queue.rows[4:], before[4:])


def test_teacher_is_frozen_and_in_the_state_dict():
    method, b = build(), random_batch(4, 1, dtype=torch.double)
    state = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    method.train()
    assert not any(m.training for m in method.teacher.modules())
    assert method.backbone.training
    method.compute_losses(b)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(torch.equal(value, state[name]) for name, value in method.teacher.state_dict().items())
    trained = {id(p) for group in method.build_optimizer().param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.parameters()} - {id(p) for p in method.teacher.parameters()}
    assert {f"teacher.{name}" for name in state} <= set(method.state_dict())


def refused(*words):
    with pytest.raises(UserError) as e:
        build_method("distill", Flat(12), 6, "--batch_size", "4", *words)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_wrong_teachers_are_errors_of_one_line():
    gone = refused("--teacher", TEACHER, "--teacher_weights", "gone.ckpt")
    assert f"teacher {TEACHER}: gone.ckpt does not exist" in gone
    assert "--queue_size 40 is smaller than the global batch of 64" in refused("--accumulate", "16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", TEACHER], "required: --teacher_weights"),
        (["--teacher_weights", "FILE"], "required: --teacher"),
        (["--teacher", TEACHER, "--teacher_weights", "FILE", "--regress", "--queue_size", "9"], "without similarities"),
        (
            ["--teacher", TEACHER, "--teacher_weights", "FILE", "--regress", "--temperature", "1"],
            "without similarities",
        ),
    ],
)
def test_flags_without_effect_or_teacher_are_errors(words, message):
    with pytest.raises(UserError, match=message):
        parse_pretraining(["digits", "resnet18", "--method", "distill", *words], METHODS, DATASETS)
