"""Barlow Twins (Zbontar et al., 2021, arXiv:2103.03230)."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import nonnegative_float, positive_float
from utils.batch import Batch
from utils.distributed import mean_over_ranks
from utils.heads import add_projector_flags, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision
from utils.view_features import ViewFeatures


def standardize(views: list[Tensor], eps: float = 1e-5) -> list[Tensor]:
    """Scale each coordinate of (n, D) embeddings to mean 0 and standard deviation 1 over the global batch of a view."""
    views = [at_least_float32(z) for z in views]
    means = mean_over_ranks(torch.stack([z.mean(dim=0) for z in views]))  # of all views in one collective
    views = [z - mean for z, mean in zip(views, means, strict=True)]
    variances = mean_over_ranks(torch.stack([z.square().mean(dim=0) for z in views]))
    return [z * (variance + eps).rsqrt() for z, variance in zip(views, variances, strict=True)]


@full_precision
def barlow_twins_loss(z1: Tensor, z2: Tensor, lamb: float) -> dict[str, Tensor]:
    """Eq. 1:  sum_i (1 - C_ii)^2  +  lambda * sum_i sum_{j != i} C_ij^2

    z1, z2: (n, D) embeddings of two views of this rank's images. C (eq. 2) is their cross-correlation over the global
    batch. Averages over ranks carry their gradient: the loss is the same on each rank, and so is the gradient of C.
    """
    z1, z2 = standardize([z1, z2])
    c = mean_over_ranks(z1.T @ z2 / len(z1), equal_gradient=True)  # (D, D)
    invariance = (1 - c.diagonal()).square().sum()
    redundancy = c.square().sum() - c.diagonal().square().sum()
    return {"loss": invariance + lamb * redundancy, "invariance": invariance, "redundancy": redundancy}


class BarlowTwins(Method):
    """Barlow Twins: make two views agree and decorrelate the coordinates of the embedding.

    As in the official code, the last norm of each residual block starts at zero (--zero_init_residual).
    """

    supports_small_views = False
    no_small_views_reason = "the cross-correlation of Barlow Twins compares exactly two views"

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="lars", lr=0.2, weight_decay=1.5e-6, zero_init_residual=True)  # sec. 2.2
        # Views: sec. 2.2, which takes those of BYOL.
        parser.set_defaults(crop_scale=[0.08, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.2, 0.1], gray=[0.2],
                            blur=[1.0, 0.1], solarize=[0.0, 0.2])  # fmt: skip
        add_projector_flags(parser, hidden=8192, dim=8192, layers=3, source="sec. 2.2")
        parser.add_argument(
            "--lamb", type=nonnegative_float, default=5e-3, help="weight of the off-diagonal term (eq. 1)"
        )
        parser.add_argument("--scale_loss", type=positive_float, default=0.024,
                            help="factor on the loss; under lars it gives biases and norms the paper's rate of 0.0048, "
                            "which is 0.024 times that of the weights (sec. 2.2)")  # fmt: skip

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=False, last_bias=False)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (self.projector(f) for f in feats.large)
        out = barlow_twins_loss(z1, z2, self.args.lamb)
        return out | {"loss": self.args.scale_loss * out["loss"]}
