"""Self-supervised methods by name: the only list; each method is one file with the equation beside the code."""

from methods.barlow_twins import BarlowTwins
from methods.base import Method
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
