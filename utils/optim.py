"""Optimizers by name, parameter groups from the module tree, learning-rate schedules per step.

Pretraining and the classifiers of an evaluation use the same functions.
"""

from argparse import ArgumentParser, _ArgumentGroup
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from utils.arg_types import number, positive_float, positive_int
from utils.errors import UserError
from utils.step_modules import cosine_value

FlagGroup = ArgumentParser | _ArgumentGroup
ParameterGroup = dict[str, Any]


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of an optimizer.

    lr: learning rate of a step, already scaled to the global batch. trust_coefficient and clip_trust_ratio: of LARS.
    clip_grad: largest norm of the gradient, None for no limit. fused: whether SGD and AdamW take one kernel per step.
    final_weight_decay: weight decay at the end of the run, along half a cosine; None for a constant one. layer_decay:
    factor on the learning rate from each block of a timm network to the one before it. decay_norms: whether biases and
    norms have weight decay too.
    """

    name: str
    lr: float
    weight_decay: float
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    clip_trust_ratio: bool = False
    clip_grad: float | None = None
    fused: bool = True
    adam_betas: tuple[float, float] = (0.9, 0.999)
    final_weight_decay: float | None = None
    layer_decay: float = 1.0
    decay_norms: bool = False


@dataclass(frozen=True)
class ScheduleConfig:
    """A learning-rate schedule. warmup_cosine: linear warm-up, then half a cosine; cosine; step; none (constant).

    All lengths are optimizer steps; decay_epochs are the epochs after which "step" multiplies by decay_factor.
    final_factor: factor on the learning rate at the end of a cosine.
    schedule_steps: the length that the schedules are made for, None for total_steps. It is shorter in a run that was
    extended at a constant rate: from there on the settings of its last step hold.
    """

    name: str
    total_steps: int
    steps_per_epoch: int
    warmup_steps: int = 0
    decay_epochs: tuple[int, ...] = ()
    decay_factor: float = 0.1
    schedule_steps: int | None = None
    final_factor: float = 0.0

    @property
    def length(self) -> int:
        """Steps that the schedules are made for."""
        return self.schedule_steps or self.total_steps

    def position(self, step: int) -> int:
        """The step of the schedules at a step of the run: of all that depend on the length, as rates and EMA."""
        return min(step, self.length - 1) if self.length < self.total_steps else step

    @property
    def total_epochs(self) -> int:
        """Epochs that the steps take; the last one may be incomplete."""
        return -(-self.total_steps // self.steps_per_epoch)


def add_optimizer_flags(group: FlagGroup) -> None:
    """Flags of the optimizer and of the step schedule that pretraining and evaluation share."""
    group.add_argument("--optimizer", choices=["adamw", "lars", "sgd"], default="sgd", help="optimizer")
    group.add_argument("--momentum", type=number(float, 0, 1), default=0.9, help="momentum of sgd and lars")
    group.add_argument("--adam_betas", type=number(float, 0, 1), nargs=2, default=[0.9, 0.999], metavar=("B1", "B2"),
                       help="decay of the averages of gradients and of their squares in adamw")  # fmt: skip
    group.add_argument("--lars_eta", type=positive_float, default=0.001, help="trust coefficient of LARS")
    group.add_argument("--lars_clip", action="store_true", help="clip the LARS trust ratio at 1 (LARC)")
    group.add_argument("--lr_decay_steps", type=positive_int, nargs="+", default=[60, 80], metavar="EPOCH",
                       help="epochs after which --scheduler step lowers the learning rate")  # fmt: skip
    group.add_argument("--lr_decay_factor", type=positive_float, default=0.1,
                       help="factor on the learning rate at each of --lr_decay_steps")  # fmt: skip


def no_weight_decay_names(module: nn.Module) -> set[str]:
    """Names of the parameters that a timm network exempts from weight decay, as position embeddings are."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        if callable(getattr(child, "no_weight_decay", None))
        for name in child.no_weight_decay()  # type: ignore[operator]
    }


@dataclass(frozen=True)
class ParamGroupRule:
    """What the optimizer does otherwise with the parameters of a submodule.

    lr_scale: factor on the learning rate. constant_lr: the schedule leaves the rate alone. frozen_epochs: epochs in
    which the parameters do not move. weight_decay and final_weight_decay: of weights, None for those of all others.
    """

    lr_scale: float = 1.0
    constant_lr: bool = False
    frozen_epochs: float = 0.0
    weight_decay: float | None = None
    final_weight_decay: float | None = None

    def over(self, other: "ParamGroupRule") -> "ParamGroupRule":
        """This rule, with the settings of `other` where this one says nothing; the factors on the rate multiply."""
        own = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        return ParamGroupRule(**(vars(other) | own | {"lr_scale": self.lr_scale * other.lr_scale}))


Rules = Mapping[str, ParamGroupRule]


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the schedule: the largest of the groups, since a rule may lower that of some of them."""
    rates = [g["lr"] for g in optimizer.param_groups if g.get("scheduled", True) and g.get("name") != "probe"]
    return float(max(rates))


def _is_for(prefix: str, name: str) -> bool:
    """Whether a rule for the prefix is one for the parameter: for all, for itself, or for the module that has it."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def rule_of(name: str, rules: Rules) -> tuple[str, ParamGroupRule]:
    """(The longest prefix of a parameter's name that has a rule, its rule over those of the shorter prefixes)."""
    prefixes = sorted((p for p in rules if _is_for(p, name)), key=len)
    rule = ParamGroupRule()
    for prefix in prefixes:
        rule = rules[prefix].over(rule)
    return (prefixes[-1] if prefixes else ""), rule


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, probe_lr: float = 0.0, rules: Rules | None = None
) -> list[ParameterGroup]:
    """Trainable parameters in groups: weights; biases and norms, mostly without weight decay; the online probe.

    The submodule "probe" has the rate probe_lr and no weight decay. rules: prefix of parameter names ("" for all) ->
    what differs; each rule makes groups of its own. Empty groups are left out. A group holds plain values only.
    A rule for no parameter is a ValueError: it would be ignored.
    """
    names = [name for name, _ in module.named_parameters()]
    if unused := [prefix for prefix in rules or {} if not any(_is_for(prefix, name) for name in names)]:
        raise ValueError(f"rules for {unused} apply to no parameter")
    exempt = no_weight_decay_names(module)
    groups: dict[tuple[str, ParamGroupRule], ParameterGroup] = {}
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        undecayed = name in exempt or (p.ndim <= 1 and not config.decay_norms)
        kind = "probe" if name.startswith("probe.") else "norms" if undecayed else "weights"
        prefix, rule = ("", ParamGroupRule()) if kind == "probe" else rule_of(name, rules or {})
        if (group := groups.get((kind, rule))) is None:
            group = groups[kind, rule] = _group(kind, prefix, rule, config, probe_lr)
        group["params"].append(p)
    return list(groups.values())


def _group(kind: str, prefix: str, rule: ParamGroupRule, config: OptimizerConfig, probe_lr: float) -> ParameterGroup:
    """An empty group of parameters of a kind under a rule; prefix: of the names that the rule is for."""
    decay = config.weight_decay if rule.weight_decay is None else rule.weight_decay
    final = config.final_weight_decay if rule.final_weight_decay is None else rule.final_weight_decay
    weights = kind == "weights"
    return {
        "params": [],
        "name": f"{kind} of {prefix}" if prefix else kind,
        "lr": probe_lr if kind == "probe" else config.lr * rule.lr_scale,
        "weight_decay": decay if weights else 0.0,
        "scheduled": not rule.constant_lr,
        "frozen_epochs": rule.frozen_epochs,
        "initial_weight_decay": decay if weights else 0.0,
        "final_weight_decay": final if weights else None,
        "always_adapt": weights,  # LARS: adapt the weights even where the user sets no decay
    }


def apply_rules(groups: list[ParameterGroup], epoch: float, progress: float) -> None:
    """Freeze parameters and set weight decays for the next optimizer step; called after the backward pass.

    A frozen parameter has no gradient: no optimizer then touches it or its moments.
    epoch: epochs taken, with their fraction. progress: fraction of the run's optimizer steps taken.
    """
    for group in groups:
        if epoch < group.get("frozen_epochs", 0):  # checkpoints of earlier versions bring groups without rules
            for p in group["params"]:
                p.grad = None
        if group.get("final_weight_decay") is not None:
            first, last = group["initial_weight_decay"], group["final_weight_decay"]
            group["weight_decay"] = cosine_value(first, last, progress)


def layer_decay_rules(backbone: nn.Module, decay: float, prefix: str = "backbone") -> dict[str, ParamGroupRule]:
    """Learning rates that fall by the factor `decay` from each block of a timm network to the one before it.

    The last block has the full rate (BEiT, arXiv:2106.08254, app. H). Names begin with `prefix`.
    """
    if not callable(getattr(backbone, "group_matcher", None)):
        raise UserError(
            f"--layer_decay {decay:g} needs a timm network that names its blocks, such as a ViT; got "
            f"{type(backbone).__name__}; choose another backbone, or remove --layer_decay"
        )
    from timm.models import group_parameters

    blocks = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(blocks.values())
    return {f"{prefix}.{name}": ParamGroupRule(lr_scale=decay ** (last - block)) for name, block in blocks.items()}


def build_optimizer(groups: list[ParameterGroup], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over `groups`.

    LARS is timm's, all layers at once on a GPU: it adapts no group without weight decay, so biases, norms and the probe
    see plain momentum SGD. Moments that are loaded get the memory layout of their parameters.
    """
    optimizer = _optimizer_of(groups, config)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_parameters)
    return optimizer


def _optimizer_of(groups: list[ParameterGroup], config: OptimizerConfig) -> torch.optim.Optimizer:
    fused = True if config.fused else None
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.adam_betas, fused=fused)
    if config.name == "lars":
        from timm.optim import Lars

        return Lars(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            trust_coeff=config.trust_coefficient,
            trust_clip=config.clip_trust_ratio,
        )
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    if config.fused and config.momentum:
        # torch allocates the momentum in the first step and leaves it unwritten where GradScaler skips that step. From
        # zeros, the momentum after the first step that is not skipped is the gradient, as torch defines it.
        for p in (p for group in sgd.param_groups for p in group["params"]):
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the strides of their parameters: fused steps need them, and checkpoints are contiguous."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def lr_factor(config: ScheduleConfig) -> Callable[[int], float]:
    """Optimizer step -> factor on the learning rate.

    warmup_cosine: linear from 1/warmup_steps to 1, then half a cosine to final_factor. cosine: the same without
    warm-up. step: times decay_factor at each of decay_epochs. none: 1.
    """

    def factor(step: int) -> float:
        step = config.position(step)
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.name.endswith("cosine"):
            progress = (step - config.warmup_steps) / max(1, config.length - config.warmup_steps)
            return cosine_value(1.0, config.final_factor, min(1.0, progress))
        if config.name == "step":
            passed = sum(step >= epoch * config.steps_per_epoch for epoch in config.decay_epochs)
            return config.decay_factor**passed
        return 1.0

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, config: ScheduleConfig) -> LambdaLR:
    """The schedule, once per optimizer step, on every group but those with a constant learning rate."""
    factor = lr_factor(config)
    return LambdaLR(optimizer, [factor if g["scheduled"] else lambda step: 1.0 for g in optimizer.param_groups])
