"""The teacher: what moves, how far, and what is saved."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from utils.ema import EMA


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_a_teacher_starts_as_its_student_and_shares_nothing():
    s = student()
    ema = EMA(s, 0.9)
    x = torch.randn(5, 4)
    assert torch.equal(ema(x), s(x))
    with torch.no_grad():
        s[0].weight.zero_()
    assert not torch.equal(ema(x), s(x))


@pytest.mark.parametrize(
    ("done", "tau"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0), (0.25, 1 - 0.05 * (1 + math.sqrt(0.5)))]
)
def test_a_step_is_the_formula(done, tau):
    s = student()
    ema = EMA(s, 0.9)
    before = [p.clone() for p in ema.teacher.parameters()]
    with torch.no_grad():
        for p in s.parameters():
            p.add_(1.0)
    ema.step(done)
    assert ema.tau.item() == pytest.approx(tau)
    for old, new, p in zip(before, ema.teacher.parameters(), s.parameters(), strict=True):
        assert_close(new, tau * old + (1 - tau) * p)


def test_many_steps_are_the_geometric_series():
    """A student that stands still is approached by the factor tau a step."""
    s = student()
    ema = EMA(s, 0.8)
    start = s[0].weight.detach().clone()
    with torch.no_grad():
        s[0].weight.add_(1.0)
    for _ in range(5):
        ema.step(0.0)
    assert_close(s[0].weight - ema.teacher[0].weight, torch.full_like(start, 0.8**5))


def test_no_gradient_reaches_or_leaves_a_teacher():
    s = student()
    ema = EMA(s, 0.9)
    assert not ema(torch.randn(5, 4, requires_grad=True)).requires_grad
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in s.parameters())


def test_the_student_is_saved_once_and_tau_is_saved():
    owner = nn.Module()
    owner.student = student()
    owner.ema = EMA(owner.student, 0.9)
    keys = list(owner.state_dict())
    assert [k for k in keys if k.endswith("0.weight")] == ["student.0.weight", "ema.teacher.0.weight"]
    assert "ema.tau" in keys
    assert len(list(owner.parameters())) == 8


def test_the_teachers_batch_norm_sees_what_the_teacher_sees():
    s = student()
    ema = EMA(s, 0.9)
    ema(10 + torch.randn(50, 4))
    assert s[1].num_batches_tracked == 0
    assert ema.teacher[1].num_batches_tracked == 1
