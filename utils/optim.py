"""Parameter groups from the module tree, optimizers by name, learning-rate schedules per step."""

import math
from argparse import Namespace
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(module: nn.Module, args: Namespace, constant: str | None = None) -> list[dict]:
    """Weights; biases and norms, without weight decay; the probe, with its own rate and without weight decay.

    `constant` names a submodule whose rate the schedule leaves alone (SimSiam's predictor). Empty groups are left out.
    """
    exempt = {f"backbone.{n}" for n in getattr(getattr(module, "backbone", None), "no_weight_decay", set)()}
    groups: dict[tuple[str, bool], dict] = {}
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        kind = "probe" if name.startswith("probe.") else "norms" if p.ndim <= 1 or name in exempt else "weights"
        held = constant is not None and name.startswith(f"{constant}.")
        group = groups.setdefault(
            (kind, held),
            {
                "params": [],
                "name": kind + " (constant rate)" * held,
                "lr": args.probe_rate if kind == "probe" else args.scaled_lr,
                "weight_decay": args.weight_decay if kind == "weights" else 0.0,
                "scheduled": not held,
                "always_adapt": kind == "weights",  # LARS: adapt the weights even where the user sets no decay
            },
        )
        group["params"].append(p)
    return list(groups.values())


def build_optimizer(groups: list[dict], args: Namespace) -> torch.optim.Optimizer:
    """The optimizer that --optimizer names.

    LARS is timm's, all layers at once on a GPU: it adapts no group without weight decay, so biases, norms and the probe
    see plain momentum SGD. The others are fused. Under 16-mixed a fused step scales the gradients back by itself, which
    would be too late for --clip_grad.
    """
    late = getattr(args, "used_precision", "32") == "16-mixed" and args.clip_grad
    fused = None if late else True
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=args.scaled_lr, fused=fused)
    if args.optimizer == "lars":
        from timm.optim import Lars

        return Lars(
            groups, lr=args.scaled_lr, momentum=args.momentum, trust_coeff=args.lars_eta, trust_clip=args.lars_clip
        )
    return torch.optim.SGD(groups, lr=args.scaled_lr, momentum=args.momentum, fused=fused)


def schedule(args: Namespace) -> Callable[[int], float]:
    """Optimizer step -> factor on the learning rate.

    warmup_cosine: linear from 1/warm-up to 1 over the warm-up, then half a cosine to 0. cosine: without warm-up.
    step: times --lr_decay_factor at each epoch of --lr_decay_steps. none: 1.
    """

    def factor(step: int) -> float:
        if step < args.warmup_steps:
            return (step + 1) / args.warmup_steps
        if args.scheduler.endswith("cosine"):
            done = (step - args.warmup_steps) / max(1, args.total_steps - args.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if args.scheduler == "step":
            passed = sum(step >= epoch * args.optimizer_steps_per_epoch for epoch in args.lr_decay_steps)
            return args.lr_decay_factor**passed
        return 1.0

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, args: Namespace) -> LambdaLR:
    """The schedule on every group but those that keep a constant rate."""
    factor = schedule(args)
    return LambdaLR(optimizer, [factor if g["scheduled"] else lambda step: 1.0 for g in optimizer.param_groups])
