"""SimSiam (Chen and He, 2020, arXiv:2011.10566)."""

from argparse import Namespace

from torch import Tensor, nn

from methods.base import Method, ViewFeatures, mean_cosine
from utils.batch import Batch
from utils.heads import add_predictor_flags, add_projector_flags, predictor, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision


@full_precision
def simsiam_loss(p: list[Tensor], z: list[Tensor]) -> dict[str, Tensor]:
    """Eq. 2:  D(p1, stopgrad(z2)) / 2  +  D(p2, stopgrad(z1)) / 2,  D the negative cosine, mean over the batch.

    p: predictions (n, D) of all views of this rank's images, large ones first. z: embeddings (n, D) of the large ones.
    z_std: deviation of the coordinates of z / |z|; 1 / sqrt(D) is healthy, 0 is collapse (sec. 4.1).
    Deviation: the paper has two views; with more, the mean over all pairs of a view and another, large one.
    """
    cosine, std = mean_cosine(p, z)
    return {"loss": -cosine, "z_std": std}


class SimSiam(Method):
    """One view predicts the other, whose gradient is stopped: no negatives, no teacher.

    Deviation: biases and norms get no weight decay here, as for every method; the official code decays them.
    """

    constant_lr_module = "predictor"  # sec. 4.2: its rate does not follow the schedule

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="sgd", lr=0.05, weight_decay=1e-4, scheduler="cosine")  # sec. 3, baseline
        add_projector_flags(parser, hidden=2048, dim=2048, layers=3, source="sec. 3")
        add_predictor_flags(parser, hidden=512, source="sec. 3")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=True, last_affine=False)  # no affine, as in the official code
        self.predictor = predictor(args)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.all]
        return simsiam_loss([self.predictor(x) for x in z], z[: len(feats.large)])
