"""The cross-entropy with a centred teacher against loops in float64 and lightly's loss, and the head."""

import math
from argparse import Namespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tests.helpers.networks import random_views
from utils.self_distillation import DistillationHead, cross_entropy, pairs_cross_entropy, view_logits

HEAD = Namespace(hidden_mlp=16, proj_dim=8, proj_layers=3, num_prototypes=12, head_norm=False)


@pytest.fixture(scope="module")
def lightly_loss():
    return pytest.importorskip("lightly.loss", reason="compares with lightly")


def center_of(k, seed=5):
    return random_views(1, 1, k, seed)[0][0]


def softmax(x):
    weights = [math.exp(float(v) - float(max(x))) for v in x]
    return [w / sum(weights) for w in weights]


def naive_cross_entropy(s, t, c, student_t, teacher_t):
    """Of one row of logits."""
    p, q = softmax((t - c) / teacher_t), softmax(s / student_t)
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def naive_pairs(student, teacher, c, student_t, teacher_t):
    values = [naive_cross_entropy(student[v][i], teacher[g][i], c, student_t, teacher_t)
              for g in range(len(teacher)) for v in range(len(student)) if v != g
              for i in range(len(teacher[0]))]  # fmt: skip
    return torch.tensor(sum(values) / len(values), dtype=torch.double)


@pytest.mark.parametrize("views", [2, 3, 6])
def test_pairs_cross_entropy_agrees_with_the_formula(views):
    student, teacher, c = random_views(views, 5, 7, 1), random_views(2, 5, 7, 2), center_of(7)
    value = pairs_cross_entropy(student, teacher, c, 0.3, 0.2)["loss"]
    assert_close(value, naive_pairs(student, teacher, c, 0.3, 0.2), rtol=0, atol=1e-12)


def test_cross_entropy_agrees_with_the_formula_for_rows_of_any_shape():
    s, t = (torch.stack(random_views(3, 4, 6, seed)) for seed in (1, 2))
    rows = cross_entropy(s, t, center_of(6), 0.1, 0.07)
    assert rows.shape == (3, 4)
    expected = naive_cross_entropy(s[2, 1], t[2, 1], center_of(6), 0.1, 0.07)
    assert_close(rows[2, 1], torch.tensor(expected, dtype=torch.double), rtol=0, atol=1e-12)


@pytest.mark.parametrize("views", [2, 5])
def test_pairs_cross_entropy_and_gradient_agree_with_lightly(views, lightly_loss):
    student, teacher, c = random_views(views, 6, 9, 1), random_views(2, 6, 9, 2), center_of(9)
    results = []
    for kind in ("lightly", "here"):
        s = [x.clone().requires_grad_() for x in student]
        if kind == "lightly":
            theirs = lightly_loss.DINOLoss(9, teacher_temp=0.07, student_temp=0.1).double()
            theirs.center = c.reshape(1, 1, -1).clone()
            value = theirs(teacher, s, teacher_temp=0.07)
        else:
            value = pairs_cross_entropy(s, teacher, c, 0.1, torch.tensor(0.07))["loss"]
        results.append([value.detach(), *torch.autograd.grad(value, s)])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_cross_entropy_of_uniform_outputs_is_the_log_of_their_number():
    one = torch.ones(3, 8, dtype=torch.double)
    out = pairs_cross_entropy([one, one], [one, one], torch.zeros(8), 0.1, 0.04)
    for value in out.values():
        assert_close(value, torch.tensor(8.0, dtype=torch.double).log())


def test_cross_entropy_of_a_certain_teacher_is_that_of_its_choice():
    t = 100 * torch.eye(4, dtype=torch.double)
    s = random_views(1, 4, 4)[0]
    expected = nn.functional.cross_entropy(s / 0.1, torch.arange(4), reduction="none")
    assert_close(cross_entropy(s, t, torch.zeros(4), 0.1, 0.04), expected)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), small=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_pairs_cross_entropy_ignores_order_and_shifts_and_is_at_least_the_teachers_entropy(seed, n, small):
    student, teacher, c = random_views(2 + small, n, 5, seed), random_views(2, n, 5, seed + 1), center_of(5, seed)
    value = pairs_cross_entropy(student, teacher, c, 0.5, 0.3)["loss"]
    images, outputs = (torch.randperm(m, generator=torch.Generator().manual_seed(seed)) for m in (n, 5))
    moved = [[x[images][:, outputs] + 3.0 for x in views] for views in (student, teacher)]
    assert_close(pairs_cross_entropy(*moved, c[outputs], 0.5, 0.3)["loss"], value)
    assert_close(pairs_cross_entropy(student, [t + c for t in teacher], 2 * c, 0.5, 0.3)["loss"], value)
    entropy = [pairs_cross_entropy(student, [t, t], c, 0.5, 0.3)["teacher_entropy"] for t in teacher]
    assert value >= torch.stack(entropy).mean() - 1e-9, "Gibbs' inequality"


def test_pairs_cross_entropy_stops_the_gradient_of_the_teacher():
    student, teacher = ([x.requires_grad_() for x in random_views(2, 4, 5, seed)] for seed in (1, 2))
    pairs_cross_entropy(student, teacher, center_of(5), 0.1, 0.04)["loss"].backward()
    assert all(t.grad is None for t in teacher)
    assert all(s.grad.abs().sum() > 0 for s in student)


def test_entropies_tell_both_kinds_of_collapse():
    one_output = torch.zeros(50, 8).index_fill(1, torch.tensor([3]), 1.0)
    out = pairs_cross_entropy([one_output] * 2, [one_output] * 2, torch.zeros(8), 0.1, 0.04)
    assert max(out["teacher_entropy"], out["batch_entropy"]) < 1e-6
    spread = torch.eye(8).repeat(5, 1)
    out = pairs_cross_entropy([spread] * 2, [spread] * 2, torch.zeros(8), 0.1, 0.04)
    assert out["teacher_entropy"] < 1e-6
    assert_close(out["batch_entropy"], torch.tensor(math.log(8)))


def test_head_gives_cosines_with_prototypes_of_unit_length():
    torch.manual_seed(0)
    head = DistillationHead(HEAD, 6)
    x = torch.randn(2, 5, 6)
    z, logits = head.bottleneck(x), head(x)
    assert_close(z.norm(dim=-1), torch.ones(2, 5))
    assert logits.shape == (2, 5, 12)
    assert logits.abs().max() <= 1 + 1e-6
    (weight,) = head.prototypes.parameters()
    assert_close(logits, z @ nn.functional.normalize(weight, dim=1).T)
    with torch.no_grad():
        weight *= 7
    assert_close(head(x), logits)


def test_views_have_the_logits_of_the_head_and_normalize_the_prototypes_once():
    torch.manual_seed(0)
    head = DistillationHead(Namespace(**vars(HEAD) | {"head_norm": True}), 6)
    views, calls = [torch.randn(4, 6), 3 + torch.randn(4, 6), torch.randn(2, 6)], []
    head.prototypes.register_forward_hook(lambda *args: calls.append(args))
    expected, _ = [head(view) for view in views], calls.clear()
    for found, alone in zip(view_logits(head, views), expected, strict=True):
        assert_close(found, alone)
    assert len(calls) == 1


def test_hidden_layers_of_the_head():
    kinds = [type(layer) for layer in DistillationHead(HEAD, 6).mlp]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert all(layer.bias is not None for layer in DistillationHead(HEAD, 6).mlp if isinstance(layer, nn.Linear))
    normed = DistillationHead(Namespace(**vars(HEAD) | {"head_norm": True}), 6).mlp
    assert [type(layer) for layer in normed][:3] == [nn.Linear, nn.BatchNorm1d, nn.GELU]


def test_head_under_autocast_compares_in_float32():
    torch.manual_seed(0)
    head = DistillationHead(HEAD, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = head.bottleneck(torch.randn(4, 6))
        logits = head.logits(z)
    assert logits.dtype == torch.float32
    assert_close(logits, head.logits(z.float()))
