"""BYOL (Grill et al., 2020, arXiv:2006.07733)."""

from argparse import Namespace

from torch import Tensor, nn

from methods.base import Method, ViewFeatures, mean_cosine
from utils.arg_types import probability
from utils.batch import Batch
from utils.ema import EMA
from utils.heads import add_predictor_flags, add_projector_flags, predictor, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision


@full_precision
def byol_loss(p: list[Tensor], target: list[Tensor]) -> dict[str, Tensor]:
    """Eq. 2 and its mirror image:  (2 - 2 cos(p1, target2))  +  (2 - 2 cos(p2, target1)), mean over the batch.

    p: predictions (n, D) of all views of this rank's images, large ones first. target: the teacher's embeddings (n, D)
    of the large ones. target_std: deviation of the coordinates of target / |target|; 1 / sqrt(D) is healthy, 0 is not.
    Deviation: the paper has two views; with more, twice the mean over all pairs of a view and another, large one.
    """
    cosine, std = mean_cosine(p, target)
    return {"loss": 2 * (2 - 2 * cosine), "target_std": std}


class BYOL(Method):
    """The online network predicts what its own moving average makes of another view: no negatives."""

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="lars", lr=0.2, weight_decay=1.5e-6)  # sec. 3.3, 1000 epochs
        add_projector_flags(parser, hidden=4096, dim=256, layers=2, source="sec. 3.3")
        add_predictor_flags(parser, hidden=4096, source="sec. 3.3")
        parser.add_argument("--tau", type=probability, default=0.996,
                            help="of the teacher at first, rising to 1 (sec. 3.3); 0.99 for 300 epochs")  # fmt: skip

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=False)
        self.predictor = predictor(args)
        self.target = EMA(nn.Sequential(backbone, self.projector), args.tau)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        p = [self.predictor(self.projector(f)) for f in feats.all]
        target = [self.target(view) for view in batch.views[: len(feats.large)]]
        return byol_loss(p, target) | {"tau": self.target.tau}
