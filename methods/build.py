"""A method for a training loop of one's own: its settings as keywords, and the plan that it reads from few facts."""

from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from methods.base import Method
from utils.errors import UserError, did_you_mean
from utils.frozen import FrozenNetwork
from utils.heads import HEAD_RULES
from utils.optim import OptimizerConfig, ScheduleConfig
from utils.plan import (
    BackboneConfig,
    BatchConfig,
    CheckpointConfig,
    DashboardConfig,
    HardwareConfig,
    LoggingConfig,
    Plan,
    TrainingSet,
    ViewsConfig,
)


@dataclass(frozen=True)
class Loop:
    """Facts about a training loop that methods read: schedules of teachers, sizes of queues and banks follow them.

    epochs: passes over `images` training images, with `classes` classes, 0 without labels. batch_size: images of a
    step. size, small_size: sides of the large views and of the `small_views` small ones, in pixels.
    """

    epochs: int = 100
    images: int = 1_281_167
    batch_size: int = 256
    size: int = 224
    small_views: int = 0
    small_size: int = 96
    classes: int = 0
    seed: int = 0


def build(
    name: str, kind: type[Method], backbone: nn.Module, loop: Loop, teacher: nn.Module | None,
    settings: Mapping[str, Any],
) -> Method:  # fmt: skip
    """The method `kind` with these settings on a backbone; see `methods.build_method`."""
    parser = ArgumentParser(add_help=False)
    kind.add_args(parser)
    actions = {action.dest: action for action in parser._actions}
    if kind.on_train_epoch_start is not Method.on_train_epoch_start or "cluster_file" in actions:
        raise UserError(f"{name} reads the data set between or before its epochs; train it with its command")
    networks = {}
    if "teacher" in actions:
        if teacher is None:
            raise UserError(f"{name} learns from another network; give it as teacher=")
        networks = {"teacher": FrozenNetwork(teacher, _width(teacher, loop.size))}
        settings = {**settings, "teacher": type(teacher).__name__}
    values = {dest: parser.get_default(dest) for dest in actions} | dict(kind.length_defaults(loop.epochs))
    for setting, value in settings.items():
        if setting not in actions:
            near = did_you_mean(setting, actions)
            raise UserError(f"{name} has no setting {setting!r}{near}; choose one of {', '.join(actions)}")
        values[setting] = _checked(actions[setting], value)
    args = Namespace(**{dest: values[dest] for dest in actions})
    known = Namespace(**values, small_views=loop.small_views)  # what the conditions of flags read
    for flags, requirement, condition in (*HEAD_RULES, *kind.flag_rules):
        for flag in flags:
            if flag in settings and values[flag] != parser.get_default(flag) and not condition(known):
                raise UserError(f"{flag} has no effect without {requirement}; add that, or leave {flag} out")
    defaults = {**parser._defaults, **kind.length_defaults(loop.epochs)}
    return kind(args, _plan(name, backbone, loop, defaults), backbone, _width(backbone, loop.size), **networks)


def _checked(action: Action, value: Any) -> Any:
    """The value of a setting, under the conditions of its flag."""
    if action.nargs == 0 and not isinstance(value, bool):
        raise UserError(f"{action.dest}={value!r}: it is True or False")
    many = isinstance(value, list | tuple)
    if action.type is None or value is None:
        checked = list(value) if many else value
    else:
        try:
            checked = [action.type(str(v)) for v in value] if many else action.type(str(value))  # type: ignore[operator]
        except (ArgumentTypeError, ValueError) as e:
            raise UserError(f"{action.dest}={value!r}: {e}") from e
    if action.choices and not {*(checked if many else [checked])} <= {*action.choices}:
        raise UserError(f"{action.dest}={value!r}: choose one of {', '.join(map(str, action.choices))}")
    return checked


@torch.no_grad()
def _width(network: nn.Module, size: int) -> int:
    """Coordinates of a feature, from one blank image."""
    modes = {module: module.training for module in network.modules()}
    shape = network.eval()(torch.zeros(1, 3, size, size, device=next(network.parameters()).device)).shape
    for module, mode in modes.items():
        module.training = mode
    if len(shape) != 2:
        raise UserError(f"the network returns features of shape {tuple(shape)}, not (N, D); leave out its classifier")
    return int(shape[1])


def _plan(name: str, backbone: nn.Module, loop: Loop, defaults: Mapping[str, Any]) -> Plan:
    """The plan of a loop, with the optimizer of the paper. defaults: those that the method sets of shared flags."""
    lr, optimizer = defaults.get("lr", 0.3), defaults.get("optimizer", "sgd")
    per_epoch = max(1, loop.images // loop.batch_size)
    scheduler, final = defaults.get("scheduler", "warmup_cosine"), defaults.get("final_lr", 0.0) / lr
    total = loop.epochs * per_epoch
    warmup = min(10 * per_epoch, total // 10) if scheduler == "warmup_cosine" else 0
    warmup = round(defaults["warmup_epochs"] * per_epoch) if "warmup_epochs" in defaults else warmup
    views = ViewsConfig(loop.size, (), loop.small_views, loop.small_size, (0.05, 0.14), 0.5, (), (), (), (), ())
    return Plan(
        method=name,
        seed=loop.seed,
        hardware=HardwareConfig(next(backbone.parameters()).device.type, 1, 1, 1),
        batch=BatchConfig(loop.batch_size, 1, 1),
        optimizer=OptimizerConfig(
            optimizer, lr * loop.batch_size / 256, defaults.get("weight_decay", 1e-4),
            clip_grad=defaults.get("clip_grad"), adam_betas=tuple(defaults.get("adam_betas", (0.9, 0.999))),
            final_weight_decay=defaults.get("final_weight_decay"), layer_decay=defaults.get("layer_decay", 1.0),
        ),
        probe_lr=1e-3 if optimizer == "adamw" else 0.1,
        schedule=ScheduleConfig(scheduler, total, per_epoch, warmup, tuple(defaults.get("lr_decay_steps", (60, 80))),
                                defaults.get("lr_decay_factor", 0.1), final_factor=final),
        views=views,
        training_set=TrainingSet("custom", loop.images, loop.images if loop.classes else 0, loop.classes, ""),
        backbone=BackboneConfig(type(backbone).__name__, ""),
        logging=LoggingConfig(10, 0, (), DashboardConfig(False, "", "", None, False)),
        checkpoint=CheckpointConfig(),
    )  # fmt: skip
