"""Self-supervised methods by name: the only list; each method is one file with the equation beside the code."""

from typing import Any

from torch import nn

from methods.barlow_twins import BarlowTwins
from methods.base import Method
from methods.build import Loop, build
from methods.byol import BYOL
from methods.clusterfit import ClusterFit
from methods.deepclusterv2 import DeepClusterV2
from methods.dino import DINO
from methods.distill import Distill
from methods.ibot import IBOT
from methods.ijepa import IJEPA
from methods.lejepa import LeJEPA
from methods.mae import MAE
from methods.mocov2 import MoCoV2
from methods.mocov3 import MoCoV3
from methods.nnclr import NNCLR
from methods.ressl import ReSSL
from methods.rotnet import RotNet
from methods.simclr import SimCLR
from methods.simsiam import SimSiam
from methods.swav import SwAV
from methods.vicreg import VICReg
from utils.errors import UserError, did_you_mean

METHODS: dict[str, type[Method]] = {
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "clusterfit": ClusterFit,
    "deepclusterv2": DeepClusterV2,
    "dino": DINO,
    "distill": Distill,
    "ibot": IBOT,
    "ijepa": IJEPA,
    "lejepa": LeJEPA,
    "mae": MAE,
    "mocov2": MoCoV2,
    "mocov3": MoCoV3,
    "nnclr": NNCLR,
    "ressl": ReSSL,
    "rotnet": RotNet,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "swav": SwAV,
    "vicreg": VICReg,
}


def build_method(
    name: str, backbone: nn.Module, loop: Loop | None = None, *, teacher: nn.Module | None = None, **settings: Any
) -> Method:
    """Build a method without a command line, for a training loop of one's own on one process.

    backbone: maps (N, 3, size, size) to (N, D). loop: the facts about the loop that methods read. teacher: the frozen
    network of a method that learns from one. settings: the method's flags, without dashes; others have their defaults.

    A step is `method.compute_losses(Batch(index, views, labels))["loss"]`, its backward pass,
    `method.on_before_optimizer_step(optimizer)`, for methods that clip
    `method.configure_gradient_clipping(optimizer, method.plan.optimizer.clip_grad)`, the optimizer's step and
    `method.after_optimizer_step()`, which moves teachers and queues. Raises UserError for an
    unknown name or setting, with the nearest one.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}{did_you_mean(name, METHODS)}; choose one of {', '.join(METHODS)}")
    return build(name, METHODS[name], backbone, loop or Loop(), teacher, settings)
