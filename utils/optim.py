"""Optimizers by name, parameter groups from the module tree, learning-rate schedules per step.

Pretraining and the classifiers of an evaluation use the same functions.
"""

import math
from argparse import ArgumentParser, _ArgumentGroup
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from utils.arg_types import number, positive_float, positive_int

FlagGroup = ArgumentParser | _ArgumentGroup
ParameterGroup = dict[str, Any]


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of an optimizer.

    lr: learning rate of a step, already scaled to the global batch. trust_coefficient and clip_trust_ratio: of LARS.
    clip_grad: largest norm of the gradient, None for no limit. fused: whether SGD and AdamW take one kernel per step.
    """

    name: str
    lr: float
    weight_decay: float
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    clip_trust_ratio: bool = False
    clip_grad: float | None = None
    fused: bool = True


@dataclass(frozen=True)
class ScheduleConfig:
    """A learning-rate schedule. warmup_cosine: linear warm-up, then half a cosine; cosine; step; none (constant).

    All lengths are optimizer steps; decay_epochs are the epochs after which "step" multiplies by decay_factor.
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


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, probe_lr: float = 0.0, constant_lr_module: str | None = None
) -> list[ParameterGroup]:
    """Trainable parameters in groups: weights; biases and norms, without weight decay; the online probe.

    The submodule "probe" has the rate probe_lr and no weight decay. constant_lr_module names a submodule whose rate
    the schedule leaves alone (SimSiam's predictor). Empty groups are left out.
    """
    exempt = no_weight_decay_names(module)
    groups: dict[tuple[str, bool], ParameterGroup] = {}
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        kind = "probe" if name.startswith("probe.") else "norms" if p.ndim <= 1 or name in exempt else "weights"
        constant = constant_lr_module is not None and name.startswith(f"{constant_lr_module}.")
        group = groups.setdefault(
            (kind, constant),
            {
                "params": [],
                "name": kind + " (constant learning rate)" * constant,
                "lr": probe_lr if kind == "probe" else lr,
                "weight_decay": weight_decay if kind == "weights" else 0.0,
                "scheduled": not constant,
                "always_adapt": kind == "weights",  # LARS: adapt the weights even where the user sets no decay
            },
        )
        group["params"].append(p)
    return list(groups.values())


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
        return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
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

    warmup_cosine: linear from 1/warmup_steps to 1, then half a cosine to 0. cosine: the same without warm-up.
    step: times decay_factor at each of decay_epochs. none: 1.
    """

    def factor(step: int) -> float:
        step = config.position(step)
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.name.endswith("cosine"):
            progress = (step - config.warmup_steps) / max(1, config.length - config.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if config.name == "step":
            passed = sum(step >= epoch * config.steps_per_epoch for epoch in config.decay_epochs)
            return config.decay_factor**passed
        return 1.0

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, config: ScheduleConfig) -> LambdaLR:
    """The schedule, once per optimizer step, on every group but those with a constant learning rate."""
    factor = lr_factor(config)
    return LambdaLR(optimizer, [factor if g["scheduled"] else lambda step: 1.0 for g in optimizer.param_groups])
