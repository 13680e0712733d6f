"""NNCLR (Dwibedi et al., 2021, arXiv:2104.14548)."""

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method, ViewFeatures, view_pairs
from utils.arg_types import positive_float, positive_int
from utils.batch import Batch
from utils.distributed import gather, rank
from utils.errors import UserError
from utils.heads import add_predictor_flags, add_projector_flags, predictor, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.queue import FeatureQueue


@full_precision
def nnclr_loss(neighbours: list[Tensor], p: list[Tensor], temperature: float) -> Tensor:
    """Eq. 3 and its transpose:  -log e(NN_i . p_i) / sum_k e(NN_i . p_k)  and the same with  sum_k e(NN_k . p_i).

    neighbours: (n, D) unit rows of the queue, nearest to the large views of this rank's images. p: (n, D) unit
    predictions of all views, large ones first. k runs over the N images of the global batch; mean over images, over the
    two terms and over the pairs of a view and the neighbour of another, large one.
    Deviation: the paper has two views, and writes the transposed term without the mean.
    """
    everyone_nn, everyone_p = (gather(torch.stack(x, dim=1)).unbind(dim=1) for x in (neighbours, p))  # each (N, D)
    own = torch.arange(len(p[0]), device=p[0].device) + rank() * len(p[0])
    pairs = zip(view_pairs(p, neighbours), view_pairs(everyone_p, everyone_nn), strict=True)
    terms = [
        F.cross_entropy(a @ b.T / temperature, own)
        for (mine_p, mine_nn), (all_p, all_nn) in pairs
        for a, b in ((mine_nn, all_p), (mine_p, all_nn))
    ]
    return torch.stack(terms).mean()


class NNCLR(Method):
    """The nearest neighbour of one view, among the embeddings of earlier batches, is the positive of the other."""

    queue: FeatureQueue

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="lars", lr=0.3, weight_decay=1e-6)  # sec. 4.1
        parser.add_argument("--temperature", type=positive_float, default=0.1, help="of the softmax (sec. 4.1)")
        add_projector_flags(parser, hidden=2048, dim=256, layers=3, source="sec. 4.1")
        add_predictor_flags(parser, hidden=4096, source="sec. 4.1")
        parser.add_argument(
            "--no_predictor", dest="predictor", action="store_false", help="compare embeddings directly"
        )
        parser.add_argument("--queue_size", type=positive_int, default=98304, help="rows of the support set (sec. 4.1)")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        if args.queue_size < plan.batch.global_batch:
            raise UserError(
                f"--queue_size {args.queue_size} is smaller than the global batch of {plan.batch.global_batch}; "
                f"raise it or lower --batch_size"
            )
        self.projector = projector(args, dim, last_norm=True)
        self.predictor = predictor(args) if args.predictor else nn.Identity()
        self.queue = FeatureQueue(args.queue_size, args.proj_dim, plan.seed)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.all]
        p = [l2_normalize(self.predictor(x)) for x in z]
        queries = [l2_normalize(x).detach() for x in z[: len(feats.large)]]
        found = [self.queue.nearest(q) for q in queries]
        loss = nnclr_loss([self.queue.rows[row] for row, _ in found], p, self.args.temperature)
        row, similarity = found[0]
        out = {"loss": loss, "nn_similarity": similarity.mean(), **self._health(row, batch.labels)}
        self.queue.push(queries[0], batch.labels)  # after the look-ups, or the batch would find itself
        return out

    def _health(self, row: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """nn_label_acc: per cent of neighbours of the query's class, among those of known labels. nn_distinct: share
        of different rows among the neighbours; near 0 the queue has collapsed to a few favourites."""
        found = torch.zeros(len(self.queue.rows), device=row.device).index_fill_(0, row, 1.0).sum() / len(row)
        out = {"nn_distinct": found, **self.queue.health()}
        if self.probe is not None:
            theirs = self.queue.labels[row]
            known = (theirs >= 0) & (labels >= 0)
            out["nn_label_acc"] = 100 * ((theirs == labels) & known).sum() / known.sum().clamp(min=1)
        return out
