"""The moving average of a network: updates, gradients and saved state."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from methods import METHODS
from tests.helpers.commands import build_method, flags_of
from tests.helpers.method_cases import backbone_of
from tests.helpers.networks import Flat
from utils.ema import EMA


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_teacher_starts_as_its_student_and_shares_no_parameter():
    s = student()
    ema = EMA(s, 0.9)
    x = torch.randn(5, 4)
    assert torch.equal(ema(x), s(x))
    with torch.no_grad():
        s[0].weight.zero_()
    assert not torch.equal(ema(x), s(x))


@pytest.mark.parametrize(
    ("progress", "tau"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0), (0.25, 1 - 0.05 * (1 + math.sqrt(0.5)))]
)
def test_update_is_the_formula(progress, tau):
    s = student()
    ema = EMA(s, 0.9)
    before = [p.clone() for p in ema.teacher.parameters()]
    with torch.no_grad():
        for p in s.parameters():
            p.add_(1.0)
    ema.after_optimizer_step(progress)
    assert ema.tau.item() == pytest.approx(tau)
    for old, new, p in zip(before, ema.teacher.parameters(), s.parameters(), strict=True):
        assert_close(new, tau * old + (1 - tau) * p)


def test_updates_towards_a_fixed_student_are_a_geometric_series():
    """The distance to a student that does not change shrinks by the factor tau at each update."""
    s = student()
    ema = EMA(s, 0.8)
    start = s[0].weight.detach().clone()
    with torch.no_grad():
        s[0].weight.add_(1.0)
    for _ in range(5):
        ema.after_optimizer_step(0.0)
    assert_close(s[0].weight - ema.teacher[0].weight, torch.full_like(start, 0.8**5))


def test_teacher_neither_gets_nor_passes_gradients():
    s = student()
    ema = EMA(s, 0.9)
    assert not ema(torch.randn(5, 4, requires_grad=True)).requires_grad
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in s.parameters())


def test_state_dict_has_the_student_once_and_tau():
    owner = nn.Module()
    owner.student = student()
    owner.ema = EMA(owner.student, 0.9)
    keys = list(owner.state_dict())
    assert [k for k in keys if k.endswith("0.weight")] == ["student.0.weight", "ema.teacher.0.weight"]
    assert "ema.tau" in keys
    assert len(list(owner.parameters())) == 8


def test_teacher_batch_norm_uses_the_batches_of_the_teacher():
    s = student()
    ema = EMA(s, 0.9)
    ema(10 + torch.randn(50, 4))
    assert s[1].num_batches_tracked == 0
    assert ema.teacher[1].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("options", "tau"),
    [({"final_tau": 0.9}, 0.9), ({"schedule": "linear"}, 0.925), ({"final_tau": 0.95, "schedule": "linear"}, 0.9125)],
)
def test_tau_is_constant_or_follows_a_line(options, tau):
    ema = EMA(student(), 0.9, **options)
    ema.after_optimizer_step(0.25)
    assert ema.tau.item() == pytest.approx(tau)


@pytest.mark.parametrize("average", [False, True])
def test_buffers_are_averaged_on_request(average):
    s = student()
    ema = EMA(s, 0.9, average_buffers=average)
    s[1].running_mean.fill_(1.0)
    ema.after_optimizer_step(0.0)
    assert_close(ema.teacher[1].running_mean, torch.full((3,), 0.1 if average else 0.0))


@pytest.mark.parametrize("name", [name for name in METHODS if "--tau" in flags_of(name)])
def test_teachers_of_every_method_follow_its_flags(name):
    ends = {"--tau": 0.8, "--final_tau": 0.9} if "--final_tau" in flags_of(name) else {"--tau": 0.8}
    words = [str(word) for flag_and_value in ends.items() for word in flag_and_value]
    backbone = backbone_of(name, lambda: Flat(12, 8), size=2, patch=1, dim=8)
    method = build_method(name, backbone, 8, "--batch_size", "8", *words)
    averages = [module for module in method.modules() if isinstance(module, EMA)]
    assert averages
    for average in averages:
        for progress, tau in ((0.0, 0.8), (1.0, list(ends.values())[-1])):
            average.after_optimizer_step(progress)
            assert average.tau.item() == pytest.approx(tau)
