"""Parameter groups, optimizers and schedules."""

import math
from argparse import Namespace

import pytest
import torch
from torch import nn

from methods import METHODS
from tests.helpers.commands import plan_of
from tests.helpers.networks import Flat
from utils.optim import build_optimizer, build_scheduler, parameter_groups, schedule


def method(name="simclr", *words):
    args = plan_of(name, "--batch_size", "16", *words)
    return METHODS[name](args, Flat(12), 6), args


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_is_in_one_group_and_biases_and_norms_do_not_decay(name):
    m, args = method(name, "--weight_decay", "0.5")
    groups = parameter_groups(m, args)
    owner = {id(p): g for g in groups for p in g["params"]}
    trained = {key: p for key, p in m.named_parameters() if p.requires_grad}
    assert all((".teacher." in key) != (key in trained) for key, _ in m.named_parameters())
    assert len(owner) == sum(len(g["params"]) for g in groups) == len(trained)
    for key, p in trained.items():
        group = owner[id(p)]
        if key.startswith("probe."):
            assert (group["lr"], group["weight_decay"]) == (args.probe_rate, 0), key
        else:
            assert (group["lr"], group["weight_decay"]) == (args.scaled_lr, 0.5 if p.ndim > 1 else 0), key


def test_a_named_submodule_keeps_its_rate():
    m, args = method("simclr", "--scheduler", "cosine")
    optimizer = build_optimizer(parameter_groups(m, args, constant="projector"), args)
    scheduler = build_scheduler(optimizer, args)
    for _ in range(args.total_steps // 2):
        optimizer.step()
        scheduler.step()
    held = {id(p) for p in m.projector.parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            expected = 1.0 if id(p) in held else 0.5
            start = args.probe_rate if group["name"] == "probe" else args.scaled_lr
            assert group["lr"] == pytest.approx(start * expected, rel=0.02)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_optimizers_move_every_group(name):
    m, args = method("simclr", "--optimizer", name)
    optimizer = build_optimizer(parameter_groups(m, args), args)
    before = [p.clone() for p in m.parameters()]
    sum(p.square().sum() + p.sum() for p in m.parameters()).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


def test_lars_adapts_weights_and_leaves_biases_to_momentum():
    """You et al., 2017, eq. 6: the step of a layer is lr * eta * |w| / (|g| + wd |w|) times its gradient."""
    layer = nn.Linear(5, 3)
    args = Namespace(optimizer="lars", scaled_lr=0.5, momentum=0.9, lars_eta=0.01, lars_clip=False, probe_rate=0.1,
                     weight_decay=0.1)  # fmt: skip
    layer(torch.ones(2, 5)).sum().backward()
    w, b, gw, gb = (t.detach().clone() for t in (layer.weight, layer.bias, layer.weight.grad, layer.bias.grad))
    build_optimizer(parameter_groups(layer, args), args).step()
    trust = 0.01 * w.norm() / (gw.norm() + 0.1 * w.norm())
    torch.testing.assert_close(layer.weight.detach(), w - 0.5 * trust * (gw + 0.1 * w))
    torch.testing.assert_close(layer.bias.detach(), b - 0.5 * gb)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_steps_are_the_plain_ones(name):
    """And they are left out where gradients are clipped before they are scaled back."""
    ends = []
    for words in ([], ["--clip_grad", "1"]):
        torch.manual_seed(0)
        m, args = method("simclr", "--optimizer", name, "--weight_decay", "0.1", *words)
        args.used_precision = "16-mixed"
        optimizer = build_optimizer(parameter_groups(m, args), args)
        assert all(bool(group["fused"]) == (not words) for group in optimizer.param_groups)
        for _ in range(3):
            optimizer.zero_grad()
            sum((p - 0.3).square().sum() for p in m.parameters()).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in m.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def plan(scheduler, total=100, warmup=0, per_epoch=10, decay=(6, 8)):
    return schedule(Namespace(scheduler=scheduler, total_steps=total, warmup_steps=warmup, lr_decay_steps=list(decay),
                              lr_decay_factor=0.1, optimizer_steps_per_epoch=per_epoch))  # fmt: skip


def test_schedules_at_known_steps():
    f = plan("warmup_cosine", total=110, warmup=10)
    assert f(0) == pytest.approx(0.1)
    assert f(9) == f(10) == 1
    assert f(60) == pytest.approx(0.5)
    assert f(110) == pytest.approx(0, abs=1e-12)
    assert f(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert plan("cosine")(50) == pytest.approx(0.5)
    step = plan("step")
    assert [round(step(s), 6) for s in (0, 59, 60, 79, 80, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert {plan("none")(s) for s in (0, 50, 99)} == {1.0}
