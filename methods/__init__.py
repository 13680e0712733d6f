"""Self-supervised methods by name: the only list; each method is one file with the equation beside the code."""

from methods.barlow_twins import BarlowTwins
from methods.base import Method
from methods.byol import BYOL
from methods.clusterfit import ClusterFit
from methods.ijepa import IJEPA
from methods.mae import MAE
from methods.nnclr import NNCLR
from methods.rotnet import RotNet
from methods.simclr import SimCLR
from methods.simsiam import SimSiam

METHODS: dict[str, type[Method]] = {
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "clusterfit": ClusterFit,
    "ijepa": IJEPA,
    "mae": MAE,
    "nnclr": NNCLR,
    "rotnet": RotNet,
    "simclr": SimCLR,
    "simsiam": SimSiam,
}
