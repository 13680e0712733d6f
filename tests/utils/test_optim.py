"""Parameter groups, optimizers and schedules."""

import math

import pytest
import timm
import torch
from torch import nn

from methods import METHODS
from runs.trainer import deterministic_algorithms
from tests.helpers.commands import build_method, plan_of
from tests.helpers.method_cases import backbone_of, is_frozen
from tests.helpers.networks import Flat
from utils.errors import UserError
from utils.optim import (
    OptimizerConfig,
    ParamGroupRule,
    ScheduleConfig,
    apply_rules,
    build_optimizer,
    build_scheduler,
    layer_decay_rules,
    learning_rate,
    lr_factor,
    no_weight_decay_names,
    parameter_groups,
    rule_of,
)


def method(name="simclr", *words):
    backbone = backbone_of(name, lambda: Flat(12, 8), size=2, patch=1, dim=8)
    return build_method(name, backbone, 8, "--batch_size", "16", *words)


def groups_of(module):
    return module.build_optimizer().param_groups


@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_parameter_groups_hold_every_parameter_once_and_decay_what_the_flags_say(name, decay_norms):
    module = method(name, "--weight_decay", "0.5", *["--decay_norms"] * decay_norms)
    groups = groups_of(module)
    owner = {id(p): g for g in groups for p in g["params"]}
    trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
    assert all(is_frozen(name, key) != (key in trained) for key, _ in module.named_parameters())
    exempt = no_weight_decay_names(module)
    assert len(owner) == sum(len(g["params"]) for g in groups) == len(trained)
    for key, p in trained.items():
        group = owner[id(p)]
        if key.startswith("probe."):
            assert (group["lr"], group["weight_decay"]) == (module.plan.probe_lr, 0), key
        else:
            decay = 0.5 if (p.ndim > 1 or decay_norms) and key not in exempt else 0
            assert (group["lr"], group["weight_decay"]) == (module.plan.optimizer.lr, decay), key


def test_parameter_groups_exempt_what_timm_exempts_at_any_depth():
    vit = timm.create_model("test_vit.r160_in1k", num_classes=0)
    outer = nn.Sequential(vit)
    assert "pos_embed" in no_weight_decay_names(vit)
    assert "0.pos_embed" in no_weight_decay_names(outer)
    config = OptimizerConfig("sgd", lr=0.1, weight_decay=0.5)
    for module in (vit, outer):
        decayed = {id(p) for g in parameter_groups(module, config) if g["weight_decay"] for p in g["params"]}
        assert decayed
        assert id(vit.pos_embed) not in decayed


def test_build_scheduler_leaves_the_named_submodule_at_its_rate():
    module = method("simclr", "--scheduler", "cosine")
    plan = module.plan
    rules = {"projector": ParamGroupRule(constant_lr=True)}
    groups = parameter_groups(module, plan.optimizer, plan.probe_lr, rules)
    optimizer = build_optimizer(groups, plan.optimizer)
    scheduler = build_scheduler(optimizer, plan.schedule)
    for _ in range(plan.schedule.total_steps // 2):
        optimizer.step()
        scheduler.step()
    constant = {id(p) for p in module.projector.parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            expected = 1.0 if id(p) in constant else 0.5
            start = plan.probe_lr if group["name"] == "probe" else plan.optimizer.lr
            assert group["lr"] == pytest.approx(start * expected, rel=0.02)


def test_rule_of_the_longest_prefix_is_laid_over_the_shorter_ones():
    rules = {
        "": ParamGroupRule(weight_decay=0.2),
        "a": ParamGroupRule(lr_scale=0.5, frozen_epochs=2),
        "a.b": ParamGroupRule(lr_scale=0.5, constant_lr=True),
    }
    assert rule_of("c.weight", rules) == ("", ParamGroupRule(weight_decay=0.2))
    assert rule_of("ab.weight", rules)[0] == "", "a prefix ends at a dot"
    assert rule_of("a.b.weight", rules) == ("a.b", ParamGroupRule(0.25, True, 2, 0.2))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_frozen_parameters_start_later_as_if_they_had_never_been_there(name, fused):
    """Fused SGD refuses a momentum that is missing where the gradient first appears."""
    config = OptimizerConfig(name, lr=0.1, weight_decay=0.1, fused=fused)
    ends = []
    for frozen in (True, False):
        torch.manual_seed(0)
        network = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
        groups = parameter_groups(network, config, rules={"b": ParamGroupRule(frozen_epochs=2)} if frozen else {})
        optimizer = build_optimizer(groups, config)
        start = network["b"].weight.detach().clone()
        for epoch in range(2 if not frozen else 0, 4):
            optimizer.zero_grad()
            sum((p - 0.3).square().sum() for p in network.parameters()).backward()
            apply_rules(optimizer.param_groups, epoch, epoch / 4)
            optimizer.step()
            assert torch.equal(network["b"].weight, start) == (epoch < 2)
        ends.append(network["b"].weight.detach())
    torch.testing.assert_close(*ends)


def test_frozen_optimizer_state_can_be_loaded_within_and_after_the_frozen_epochs():
    for epochs in (1, 3):
        config = OptimizerConfig("sgd", lr=0.1, weight_decay=0.1)
        torch.manual_seed(0)
        network = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
        rules = {"b": ParamGroupRule(frozen_epochs=2)}
        optimizer, loaded = (build_optimizer(parameter_groups(network, config, rules=rules), config) for _ in range(2))
        for epoch in range(epochs):
            optimizer.zero_grad()
            sum(p.square().sum() for p in network.parameters()).backward()
            apply_rules(optimizer.param_groups, epoch, 0.0)
            optimizer.step()
        loaded.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
        sum(p.square().sum() for p in network.parameters()).backward()
        apply_rules(loaded.param_groups, epochs, 0.0)
        loaded.step()
        assert all(torch.isfinite(p).all() for p in network.parameters())


def test_weight_decay_goes_to_its_final_value_along_half_a_cosine():
    config = OptimizerConfig("adamw", lr=0.1, weight_decay=0.04, final_weight_decay=0.4)
    groups = build_optimizer(parameter_groups(nn.Linear(3, 2), config), config).param_groups
    for progress, expected in ((0.0, 0.04), (0.5, 0.22), (1.0, 0.4)):
        apply_rules(groups, 0.0, progress)
        decays = {group["name"]: group["weight_decay"] for group in groups}
        assert decays == {"weights": pytest.approx(expected), "norms": 0.0}


def test_layer_decay_lowers_the_rate_of_early_blocks():
    vit = timm.create_model("test_vit", num_classes=0)
    rules = layer_decay_rules(vit, 0.5)
    last = len(vit.blocks)
    for name, block in (("patch_embed.proj.weight", 0), ("blocks.0.attn.qkv.weight", 1), ("norm.weight", last)):
        assert rules[f"backbone.{name}"].lr_scale == 0.5 ** (last - block)
    with pytest.raises(UserError, match="--layer_decay 0.5 needs a timm network"):
        layer_decay_rules(nn.Linear(3, 2), 0.5)


def test_adam_betas_and_final_lr_reach_the_optimizer_and_the_schedule():
    plan = plan_of("simclr", "--optimizer", "adamw", "--adam_betas", "0.8", "0.9", "--lr", "0.2", "--final_lr", "0.05")[
        1
    ]
    assert build_optimizer(parameter_groups(nn.Linear(3, 2), plan.optimizer), plan.optimizer).defaults["betas"] == (
        0.8, 0.9)  # fmt: skip
    factor = lr_factor(plan.schedule)
    assert factor(plan.schedule.total_steps) == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_build_optimizer_moves_every_group(name):
    module = method("simclr", "--optimizer", name)
    optimizer = build_optimizer(groups_of(module), module.plan.optimizer)
    before = [p.clone() for p in module.parameters()]
    sum(p.square().sum() + p.sum() for p in module.parameters()).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_lars_adapts_weights_and_leaves_biases_to_momentum():
    """You et al., 2017, eq. 6: the step of a layer is lr * eta * |w| / (|g| + wd |w|) times its gradient."""
    layer = nn.Linear(5, 3)
    config = OptimizerConfig("lars", lr=0.5, weight_decay=0.1, trust_coefficient=0.01)
    layer(torch.ones(2, 5)).sum().backward()
    w, b, gw, gb = (t.detach().clone() for t in (layer.weight, layer.bias, layer.weight.grad, layer.bias.grad))
    build_optimizer(parameter_groups(layer, config), config).step()
    trust = 0.01 * w.norm() / (gw.norm() + 0.1 * w.norm())
    torch.testing.assert_close(layer.weight.detach(), w - 0.5 * trust * (gw + 0.1 * w))
    torch.testing.assert_close(layer.bias.detach(), b - 0.5 * gb)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizers_equal_the_plain_ones(name):
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        module = method("simclr")
        config = OptimizerConfig(name, lr=0.05, weight_decay=0.1, fused=fused)
        optimizer = build_optimizer(parameter_groups(module, config, 0.1), config)
        assert all(bool(group["fused"]) == fused for group in optimizer.param_groups)
        for _ in range(3):
            optimizer.zero_grad()
            sum((p - 0.3).square().sum() for p in module.parameters()).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def step_under_grad_scaler(optimizer, parameter, gradient, overflow=False):
    """A step as GradScaler lets a fused optimizer do it: a flag says that the gradients have overflowed."""
    parameter.grad = torch.full_like(parameter, torch.inf if overflow else gradient)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(float(overflow))
    optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fused_sgd_starts_without_momentum_after_a_skipped_first_step(momentum):
    """torch leaves the momentum uninitialized where GradScaler skips the first step."""
    ends = []
    for skips in (0, 2):
        parameter = nn.Parameter(torch.ones(4))
        group = {"params": [parameter], "lr": 0.1, "weight_decay": 0.0}
        optimizer = build_optimizer([group], OptimizerConfig("sgd", lr=0.1, weight_decay=0.0, momentum=momentum))
        for _ in range(skips):
            with deterministic_algorithms(True):  # torch then fills memory that it leaves unwritten with NaN
                step_under_grad_scaler(optimizer, parameter, 1.0, overflow=True)
            assert torch.equal(parameter.detach(), torch.ones(4))
        for gradient in (1.0, -3.0):
            step_under_grad_scaler(optimizer, parameter, gradient)
        ends.append(parameter.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_loaded_optimizer_state_has_the_memory_layout_of_its_parameters(name):
    """A checkpoint is contiguous, and fused steps on a GPU refuse moments of another layout than their weights'."""
    config = OptimizerConfig(name, lr=0.1, weight_decay=0.1)
    states, weights = [], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)
        optimizer = build_optimizer(parameter_groups(layer, config), config)
        if states:
            optimizer.load_state_dict(states[0])
        else:
            layer(torch.ones(1, 3, 5, 5)).sum().backward()
            optimizer.step()
            states.append(optimizer.state_dict())
        weights.append((layer.weight, optimizer.state[layer.weight]))
    (_, before), (weight, after) = weights
    moments = [k for k, v in after.items() if v.shape == weight.shape]
    assert moments
    assert all(torch.equal(after[k], before[k]) and after[k].stride() == weight.stride() for k in moments)


def test_fused_steps_are_off_where_gradients_are_clipped_before_unscaling(monkeypatch):
    monkeypatch.setattr("cli.plan.choose_precision", lambda requested, accelerator: ("16-mixed", "test"))
    assert plan_of("simclr")[1].optimizer.fused
    assert not plan_of("simclr", "--clip_grad", "1")[1].optimizer.fused


def factor(name, total=100, warmup=0):
    return lr_factor(ScheduleConfig(name, total, 10, warmup, decay_epochs=(6, 8), decay_factor=0.1))


def test_lr_factor_of_warmup_cosine():
    f = factor("warmup_cosine", total=110, warmup=10)
    assert f(0) == pytest.approx(0.1)
    assert f(9) == f(10) == 1
    assert f(60) == pytest.approx(0.5)
    assert f(110) == pytest.approx(0, abs=1e-12)
    assert f(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_lr_factor_of_the_other_schedules():
    assert factor("cosine")(50) == pytest.approx(0.5)
    assert [round(factor("step")(s), 6) for s in (0, 59, 60, 79, 80, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert {factor("none")(s) for s in (0, 50, 99)} == {1.0}


def test_schedule_config_counts_the_incomplete_last_epoch():
    assert [ScheduleConfig("none", steps, 10).total_epochs for steps in (10, 11, 20)] == [1, 2, 2]


def test_learning_rate_is_that_of_the_schedule_where_rules_lower_some():
    """The first parameters of a network have the lowest rate under --layer_decay, the probe has one of its own."""
    vit = timm.create_model("test_vit", num_classes=0)
    module = nn.ModuleDict({"backbone": vit, "probe": nn.Linear(2, 2)})
    config = OptimizerConfig("sgd", 0.1, 0.0)
    groups = parameter_groups(module, config, probe_lr=5.0, rules=layer_decay_rules(vit, 0.5))
    optimizer = build_optimizer(groups, config)
    assert optimizer.param_groups[0]["lr"] < 0.1
    assert learning_rate(optimizer) == 0.1


def test_rule_for_no_parameter_is_an_error():
    """It would be ignored without a word."""
    with pytest.raises(ValueError, match=r"rules for \['weight.'\] apply to no parameter"):
        parameter_groups(nn.Linear(3, 2), OptimizerConfig("sgd", 0.1, 0.0), rules={"weight.": ParamGroupRule()})
