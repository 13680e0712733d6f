"""SimSiam (Chen and He, 2020, arXiv:2011.10566)."""

from argparse import Namespace

from torch import Tensor, nn

from methods.base import Method
from utils.batch import Batch
from utils.heads import add_predictor_flags, add_projector_flags, predictor, projector
from utils.nearest_neighbours import QUEUE_NEEDS_NEIGHBOURS, add_neighbour_flags, build_queue, replace_by_neighbours
from utils.optim import FlagGroup, ParamGroupRule
from utils.plan import Plan
from utils.precision import full_precision
from utils.view_features import ViewFeatures, coordinate_std, mean_cosine


@full_precision
def simsiam_loss(p: list[Tensor], z: list[Tensor]) -> dict[str, Tensor]:
    """Eq. 2:  D(p1, stopgrad(z2)) / 2  +  D(p2, stopgrad(z1)) / 2,  D the negative cosine, mean over the batch.

    p: predictions (n, D) of all views of this rank's images, large ones first. z: embeddings (n, D) of the large views.
    z_std: standard deviation of the coordinates of z / |z|; 1 / sqrt(D) is healthy, 0 is collapse (sec. 4.1).
    Deviation: the paper has two views; with more, the mean over all pairs of a view and another, large one.
    """
    z = [embedding.detach() for embedding in z]  # stopgrad
    return {"loss": -mean_cosine(p, z), "z_std": coordinate_std(z[0])}


class SimSiam(Method):
    """SimSiam: predict one view's embedding from the other's, with a stopped gradient and without negatives.

    --neighbours (NNSiam, of solo-learn): predict the nearest neighbour of that embedding in a queue of earlier ones.
    As in the official code, the last norm of each residual block starts at zero (--zero_init_residual).
    Deviation: biases and norms get no weight decay here, as for every method; the official code decays them.
    """

    flag_rules = (QUEUE_NEEDS_NEIGHBOURS,)

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        # sec. 3, baseline settings
        parser.set_defaults(optimizer="sgd", lr=0.05, weight_decay=1e-4, scheduler="cosine", zero_init_residual=True)
        parser.set_defaults(crop_scale=[0.2, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.4, 0.1], gray=[0.2],
                            blur=[0.5], solarize=[0.0])  # fmt: skip
        add_projector_flags(parser, hidden=2048, dim=2048, layers=3, source="sec. 3")
        add_predictor_flags(parser, hidden=512, source="sec. 3")
        add_neighbour_flags(parser, "NNSiam")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.projector = projector(args, dim, last_norm=True, last_affine=False)  # no affine, as in the official code
        self.predictor = predictor(args)
        self.queue = build_queue(args, plan, args.proj_dim) if args.neighbours else None

    def param_group_rules(self) -> dict[str, ParamGroupRule]:
        return {"predictor": ParamGroupRule(constant_lr=True)}  # sec. 4.2: its rate does not follow the schedule

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.all]
        p, z = [self.predictor(x) for x in z], z[: len(feats.large)]
        if self.queue is None:
            return simsiam_loss(p, z)
        neighbours, metrics = replace_by_neighbours(self.queue, z, batch.labels, self.probe is not None)
        # z_std: of the embeddings, since neighbours may be diverse when these have collapsed.
        return simsiam_loss(p, neighbours) | metrics | {"z_std": coordinate_std(z[0].detach())}
