"""VICReg (Bardes et al., 2021, arXiv:2105.04906)."""

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method
from utils.arg_types import nonnegative_float
from utils.batch import Batch
from utils.distributed import gather_together
from utils.heads import add_projector_flags, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision
from utils.view_features import ViewFeatures, view_pairs

EPSILON = 1e-4  # added to a variance before its square root is taken (eq. 2)


def variance_terms(z: Tensor) -> tuple[Tensor, Tensor]:
    """Terms v (eq. 1 and 2) and c (eq. 3 and 4) of the (N, D) embeddings z of one view of the global batch:

    v = 1/D sum_i max(0, 1 - sqrt(C_ii + 1e-4)),   c = 1/D sum_{i != j} C_ij^2,   C: covariance, divided by N - 1.
    """
    n, d = z.shape
    z = (z - z.mean(dim=0)) * (n - 1) ** -0.5
    variance = z.square().sum(dim=0)  # (D,) diagonal of C = z^T z
    gram = z @ z.T if n < d else z.T @ z  # their entries have the same sum of squares: the smaller matrix is computed
    covariance = gram.square().sum() - variance.square().sum()
    return F.relu(1 - (variance + EPSILON).sqrt()).mean(), covariance / d


@full_precision
def vicreg_loss(z: list[Tensor], large: int, sim_coeff: float, std_coeff: float, cov_coeff: float) -> dict[str, Tensor]:
    """Eq. 6:  sim_coeff * s(z1, z2)  +  std_coeff * [v(z1) + v(z2)] / 2  +  cov_coeff * [c(z1) + c(z2)]

    z: embeddings (n, D) of all views of this rank's images, the `large` large ones first. s (eq. 5) is the mean of
    (z1 - z2)^2 over images and coordinates; v and c (`variance_terms`) are those of the global batch, so that they are
    equal on each rank. Nothing is normalized, and every term has a gradient in both views.
    Deviation: v is halved and s is a mean over coordinates, as in the official code; the paper has neither factor.
    Deviation: the paper has two views; with more, s is the mean over all pairs of a view and another, large one, and v
    and c have the means over all views, times 1 and 2.
    """
    z = [at_least_float32(view) for view in z]
    invariance = torch.stack([F.mse_loss(a, b) for a, b in view_pairs(z, z[:large])]).mean()
    terms = [variance_terms(view) for view in gather_together(*z)]
    variance, covariance = (torch.stack(term).mean() for term in zip(*terms, strict=True))
    loss = sim_coeff * invariance + std_coeff * variance + 2 * cov_coeff * covariance
    return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}


class VICReg(Method):
    """VICReg: make views agree, keep the variance of each coordinate of the embedding and decorrelate coordinates.

    As in the official code, the last norm of each residual block starts at zero (--zero_init_residual). The learning
    rate is its setting for 100 epochs; for 1000 epochs at 2048 images it is 0.2.
    """

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="lars", lr=0.3, weight_decay=1e-6, zero_init_residual=True)  # sec. 4.2
        # Views: those of BYOL, as in the official code.
        parser.set_defaults(crop_scale=[0.08, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.2, 0.1], gray=[0.2],
                            blur=[1.0, 0.1], solarize=[0.0, 0.2])  # fmt: skip
        add_projector_flags(parser, hidden=8192, dim=8192, layers=3, source="sec. 4.2")
        parser.add_argument(
            "--sim_coeff", type=nonnegative_float, default=25.0, help="weight of the invariance term (sec. 4.2)"
        )
        parser.add_argument(
            "--std_coeff", type=nonnegative_float, default=25.0, help="weight of the variance term (sec. 4.2)"
        )
        parser.add_argument(
            "--cov_coeff", type=nonnegative_float, default=1.0, help="weight of the covariance term (sec. 4.2)"
        )

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=False, last_bias=False)  # the paper's expander

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.all]
        return vicreg_loss(z, len(feats.large), self.args.sim_coeff, self.args.std_coeff, self.args.cov_coeff)
