"""A pytest plugin that adds a method to METHODS, as a person does who follows CONTRIBUTING.md: `-p` and this module.

The method pulls the embeddings of two views together and has no idea of collapse: it is here to be tested, not used.
"""

from argparse import Namespace

from torch import Tensor, nn

from methods import METHODS
from methods.base import Method
from utils.batch import Batch
from utils.heads import add_projector_flags, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.view_features import ViewFeatures, mean_cosine


class Throwaway(Method):
    """Throwaway: predict one view's embedding by the other's."""

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        add_projector_flags(parser, hidden=64, dim=32, layers=2, source="invented")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=True)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.all]
        return {"loss": 1 - mean_cosine(z, z[: len(feats.large)])}


METHODS["throwaway"] = Throwaway
