"""The frozen network that a method learns from: another backbone, by its name and a file of its weights."""

from argparse import Namespace
from dataclasses import replace

import torch

from backbones.build import build_backbone
from backbones.load import check_compatible, initial_config, load_backbone, open_weights
from utils.distributed import rank_zero_print
from utils.errors import UserError
from utils.frozen import FrozenNetwork
from utils.plan import Plan


def with_teacher(settings: Namespace, plan: Plan) -> tuple[Plan, dict[str, FrozenNetwork]]:
    """Build the network that the settings `teacher` and `teacher_weights` of a method describe.

    Returns the plan, which then says how the network is built, and the further arguments of the method's constructor:
    its teacher, or nothing for a method without these settings. Where the plan says it before, it is that of a resumed
    run: the weights come from the checkpoint, and their file is not read.
    """
    if "teacher" not in settings:
        return plan, {}
    name, config = settings.teacher, plan.teacher
    try:
        with torch.random.fork_rng(devices=[]):  # the method's own initial weights do not depend on the teacher
            weights = None if config else open_weights(settings.teacher_weights)
            if weights:
                config = initial_config("auto", name, weights, plan.views.large_size)
                check_compatible(weights, name, "auto", config.stem)
            assert config
            network, dim = build_backbone(config, *plan.views.sizes)
        if weights:
            load_backbone(weights, network, report=rank_zero_print, remedy="name the backbone of the weights")
    except UserError as e:
        raise UserError(f"teacher {name}: {e}") from e
    return replace(plan, teacher=config), {"teacher": FrozenNetwork(network, dim)}
