"""Self-supervised methods by name: the only list; each method is one file with the equation beside the code."""

from methods.barlow_twins import BarlowTwins
from methods.base import Method
from methods.byol import BYOL
from methods.clusterfit import ClusterFit
from methods.lejepa import LeJEPA
from methods.nnclr import NNCLR
from methods.rotnet import RotNet
from methods.simclr import SimCLR
from methods.simsiam import SimSiam

METHODS: dict[str, type[Method]] = {
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "clusterfit": ClusterFit,
    "lejepa": LeJEPA,
    "nnclr": NNCLR,
    "rotnet": RotNet,
    "simclr": SimCLR,
    "simsiam": SimSiam,
}
