"""BYOL (Grill et al., 2020, arXiv:2006.07733)."""

from argparse import Namespace
from typing import Any

from torch import Tensor, nn

from methods.base import Method
from utils.batch import Batch
from utils.ema import EMA, add_tau_flags
from utils.heads import add_predictor_flags, add_projector_flags, predictor, projector
from utils.nearest_neighbours import QUEUE_NEEDS_NEIGHBOURS, add_neighbour_flags, build_queue, replace_by_neighbours
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision
from utils.view_features import ViewFeatures, coordinate_std, mean_cosine

SHORT_RUN = 300  # epochs; up to here the official code's settings for 100 epochs, beyond them the paper's for 1000


@full_precision
def byol_loss(p: list[Tensor], target: list[Tensor]) -> dict[str, Tensor]:
    """Eq. 2, symmetrized:  (2 - 2 cos(p1, sg(target2)))  +  (2 - 2 cos(p2, sg(target1))), mean over the batch.

    p: predictions (n, D) of all views of this rank's images, large ones first. target: the target network's embeddings
    (n, D) of the large views; sg stops their gradient. target_std: standard deviation of the coordinates of
    target / |target|; 1 / sqrt(D) is healthy, 0 is collapse.
    Deviation: the paper has two views; with more, twice the mean over all pairs of a view and another, large one.
    """
    target = [t.detach() for t in target]  # sg
    return {"loss": 2 * (2 - 2 * mean_cosine(p, target)), "target_std": coordinate_std(target[0])}


class BYOL(Method):
    """BYOL: predict the embedding that a moving average of the network gives another view, without negatives.

    --neighbours (NNBYOL, of solo-learn): predict the nearest neighbour of that embedding in a queue of earlier ones.
    Deviation: up to 300 epochs the learning rate is 0.45; the official code has 0.45 at 100 epochs and 0.3 at 300.
    """

    flag_rules = (QUEUE_NEEDS_NEIGHBOURS,)

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        short = BYOL.length_defaults(SHORT_RUN)
        parser.set_defaults(optimizer="lars", lr=short["lr"], weight_decay=short["weight_decay"])
        # Views: app. B.
        parser.set_defaults(crop_scale=[0.08, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.2, 0.1], gray=[0.2],
                            blur=[1.0, 0.1], solarize=[0.0, 0.2])  # fmt: skip
        add_projector_flags(parser, hidden=4096, dim=256, layers=2, source="sec. 3.3")
        add_predictor_flags(parser, hidden=4096, source="sec. 3.3")
        add_tau_flags(parser, short["tau"], "sec. 3.3", note=f"; 0.996 for more than {SHORT_RUN} epochs")
        add_neighbour_flags(parser, "NNBYOL")

    @staticmethod
    def length_defaults(epochs: int) -> dict[str, Any]:
        if epochs <= SHORT_RUN:
            return {"tau": 0.99, "lr": 0.45, "weight_decay": 1e-6}
        return {"tau": 0.996, "lr": 0.2, "weight_decay": 1.5e-6}  # sec. 3.3: 1000 epochs

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=False)
        self.predictor = predictor(args)
        self.target = EMA(nn.Sequential(backbone, self.projector), args.tau, args.final_tau)
        self.queue = build_queue(args, plan, args.proj_dim) if args.neighbours else None

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        p = [self.predictor(self.projector(f)) for f in feats.all]
        target = [self.target(view) for view in batch.views[: len(feats.large)]]
        if self.queue is None:
            return byol_loss(p, target) | {"tau": self.target.tau}
        neighbours, metrics = replace_by_neighbours(self.queue, target, batch.labels, self.probe is not None)
        # target_std: of the embeddings, since neighbours may be diverse when these have collapsed.
        return byol_loss(p, neighbours) | metrics | {"tau": self.target.tau, "target_std": coordinate_std(target[0])}
