"""LeJEPA (Balestriero and LeCun, 2025, arXiv:2511.08544)."""

import math
from argparse import Namespace

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import positive_int, probability
from utils.batch import Batch
from utils.distributed import mean_over_ranks, world_size
from utils.heads import add_projector_flags, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision
from utils.random import uniform
from utils.row_chunks import map_row_chunks
from utils.step_modules import ScheduledValue
from utils.view_features import ViewFeatures

KNOTS, T_MAX = 17, 3.0  # of the integral over t, as in the official code


@full_precision
def sigreg(views: list[Tensor], directions: Tensor) -> Tensor:
    """SIGReg with the test of Epps and Pulley: mean over views and directions a of
    N * integral over [-3, 3] of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,  phi(t) = mean over images of e^(i t a.z).

    views: V tensors (n, D), embeddings of this rank's n images, N in the global batch. directions: (D, M) unit columns,
    equal on all ranks. Standard normal embeddings have an expected value of 1.05 for any N, any others grow with N.
    """
    z = torch.stack([at_least_float32(view) for view in views], dim=1)  # (n, V, D)
    directions = directions.to(z.dtype)
    t = torch.linspace(0, T_MAX, KNOTS, device=z.device, dtype=z.dtype)

    def sums(z: Tensor) -> tuple[Tensor]:
        angles = (z @ directions)[..., None] * t  # (m, V, M, knots)
        return (torch.stack([angles.cos().sum(dim=0), angles.sin().sum(dim=0)])[None],)

    (parts,) = map_row_chunks(sums, len(views) * directions.shape[1] * KNOTS, z)
    # The value below is computed from these means alone, equally on all ranks, and so is its gradient.
    real, imaginary = mean_over_ranks(parts.sum(dim=0) / len(z), equal_gradient=True)  # (V, M, knots) each
    gaussian = (-t.square() / 2).exp()
    error = (real - gaussian).square() + imaginary.square()
    statistics = 2 * torch.trapezoid(error * gaussian, dx=T_MAX / (KNOTS - 1))  # (V, M); the integrand is even in t
    return statistics.mean() * (len(z) * world_size())


@full_precision
def lejepa_loss(views: list[Tensor], num_center: int, directions: Tensor, lamb: float) -> dict[str, Tensor]:
    """(1 - lambda) * mean over views, images and coordinates of (c - z)^2  +  lambda * SIGReg,  with gradient to c too.

    views: (n, D) embeddings of all views of this rank's images, large ones first. c: the mean of the first num_center
    of them. directions: as in `sigreg`.
    """
    z = torch.stack([at_least_float32(view) for view in views])  # (V, n, D)
    prediction = (z[:num_center].mean(dim=0) - z).square().mean()
    regularization = sigreg(views, directions)
    loss = (1 - lamb) * prediction + lamb * regularization
    return {"loss": loss, "prediction": prediction, "sigreg": regularization}


def random_directions(seed: int, step: Tensor, dim: int, count: int) -> Tensor:
    """Directions (dim, count) that are uniform on the unit sphere, in float32: a function of seed and step alone.

    step: number of the optimizer step, int64 without dimensions, on the device of the result.
    """
    part, row, column = (torch.arange(size, device=step.device) for size in (2, dim, count))
    radius, angle = uniform(seed, step, part[:, None, None], row[:, None], column)  # for Box and Muller's transform
    normal = (-2 * torch.log1p(-radius)).sqrt() * (2 * math.pi * angle).cos()
    directions: Tensor = normal / normal.norm(dim=0)
    return directions.float()


class LeJEPA(Method):
    """LeJEPA: predict the mean embedding of an image from each view, and keep embeddings normally distributed.

    No teacher, no stopped gradient and no predictor. The value of SIGReg grows with the global batch where embeddings
    are not normally distributed, so --lamb belongs to a batch size.
    Deviation: the official code has a further linear layer of width 512 between backbone and projector.
    """

    flag_rules = ((("center_views",), "--small_views", lambda args: bool(args.small_views)),)

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        # Optimizer: the official README, for ResNets. Views: its example of views of equal size.
        parser.set_defaults(optimizer="adamw", lr=5e-4, weight_decay=5e-4, final_lr=5e-7)
        parser.set_defaults(crop_scale=[0.08, 1.0], small_scale=[0.05, 0.3], jitter=[0.8],
                            jitter_strengths=[0.4, 0.4, 0.2, 0.1], gray=[0.2], blur=[0.5], solarize=[0.2])  # fmt: skip
        parser.add_argument("--lamb", type=probability, default=0.05, help="weight of SIGReg, between 0 and 1")
        parser.add_argument("--directions", type=positive_int, default=1024,
                            help="random directions on which SIGReg projects the embeddings in each step")  # fmt: skip
        parser.add_argument("--center_views", choices=["large", "all"], default="large",
                            help="views whose mean every view predicts; all: for views of one size")  # fmt: skip
        add_projector_flags(parser, hidden=2048, dim=64, layers=3, source="official code")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=False)
        steps_per_epoch = plan.schedule.steps_per_epoch
        self.step_number = ScheduledValue(lambda epoch, progress: round(epoch * steps_per_epoch), dtype=torch.long)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        views = [self.projector(f) for f in feats.all]
        step, args = self.step_number.value, self.args
        directions = random_directions(self.plan.seed, step, args.proj_dim, args.directions)
        num_center = len(feats.large) if args.center_views == "large" else len(views)
        return lejepa_loss(views, num_center, directions, args.lamb)
