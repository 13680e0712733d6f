"""Who learns. The only list of methods: one file each, the equation beside the code."""

from methods.base import Method
from methods.nnclr import NNCLR
from methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {
    "nnclr": NNCLR,
    "simclr": SimCLR,
}
