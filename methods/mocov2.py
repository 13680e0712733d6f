"""MoCo v2 (Chen et al., 2020, arXiv:2003.04297)."""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import positive_float, positive_int, probability
from utils.batch import Batch
from utils.ema import EMA
from utils.heads import add_projector_flags, projector
from utils.nearest_neighbours import build_queue
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.queue import FeatureQueue
from utils.row_chunks import map_row_chunks
from utils.view_features import ViewFeatures, view_pairs


@full_precision
def mocov2_loss(pairs: list[tuple[Tensor, Tensor, Tensor]], temperature: float) -> dict[str, Tensor]:
    """Eq. 1:  -log  e(q . k) / [e(q . k) + sum_r e(q . r)],  e(s) = exp(s / T), mean over the batch and over pairs.

    pairs: (q, k, rows) for each pair of a query's view and a key's view: (n, D) unit queries and keys of this rank's
    images and the (R, D) unit rows r of the queue of that key's view, the only negatives. key_acc: per cent of queries
    that are more similar to their key than to every row.
    Deviation: the paper has one query and one key of an image; with more, the mean over pairs of different views.
    """
    columns = len(pairs) * len(pairs[0][2])  # of the similarities of all pairs together
    terms = [map_row_chunks(partial(_contrast, rows, temperature), columns, q, k.detach()) for q, k, rows in pairs]
    loss, positive, found = (torch.stack([x.mean() for x in term]).mean() for term in zip(*terms, strict=True))
    return {"loss": loss, "positive_similarity": positive, "key_acc": 100 * found}


def _contrast(rows: Tensor, temperature: float, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, similarity to the key, and whether the key is found, of each of (m, D) queries: (m,) each."""
    positive = (q * k).sum(dim=1)  # (m,)
    negatives = q @ rows.T  # (m, R)
    normalizer = torch.logaddexp(positive / temperature, (negatives / temperature).logsumexp(dim=1))
    return normalizer - positive / temperature, positive, (positive > negatives.amax(dim=1)).to(q.dtype)


class MoCoV2(Method):
    """MoCo v2: find the key of a query among those of earlier batches, made by a moving average of the network.

    --symmetric: each view is query and key (MoCo v2+). As in solo-learn, each of the two has a queue of its own.
    Deviation: batch norm has the statistics of the global batch, in the network of the keys too, which are therefore
    the same on any number of processes; the official code shuffles the keys over GPUs with statistics of their own.
    Deviation: biases and norms get no weight decay here, as for every method; the official code decays them.
    """

    queues: Sequence[FeatureQueue]

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="sgd", lr=0.03, weight_decay=1e-4, scheduler="cosine")  # sec. 3, official code
        # Views: sec. 3 and the official code.
        parser.set_defaults(crop_scale=[0.2, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.4, 0.1], gray=[0.2],
                            blur=[0.5], solarize=[0.0])  # fmt: skip
        parser.add_argument(
            "--temperature", type=positive_float, default=0.2, help="temperature of the softmax (sec. 3)"
        )
        add_projector_flags(parser, hidden=2048, dim=128, layers=2, source="sec. 3")
        parser.add_argument("--tau", type=probability, default=0.999,
                            help="constant decay of the moving average (official code); "
                            "0.99 suits small data sets better")  # fmt: skip
        parser.add_argument("--queue_size", type=positive_int, default=65536, help="keys in a queue (official code)")
        parser.add_argument(
            "--symmetric", action="store_true", help="each large view is query and key, with two queues (MoCo v2+)"
        )

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.num_choices = 1 + args.queue_size
        self.projector = projector(args, dim, last_norm=False, norm=False)
        self.target = EMA(nn.Sequential(backbone, self.projector), args.tau, final_tau=args.tau)
        views = 2 if args.symmetric else 1  # whose keys enter a queue: both large views, or the second alone
        queues = [build_queue(args, plan, args.proj_dim, number=i) for i in range(views)]
        self.queues = nn.ModuleList(queues)  # type: ignore[assignment]  # a sequence of queues, and a module

    def forward_views(self, batch: Batch) -> ViewFeatures:
        """Features of the queries' views: without --symmetric the second large view is seen by the target alone."""
        first, second, *small = batch.views
        return super().forward_views(batch if self.args.symmetric else batch._replace(views=[first, *small]))

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        q = [l2_normalize(self.projector(f)) for f in feats.all]
        k = [l2_normalize(self.target(view)) for view in batch.views[2 - len(self.queues) : 2]]
        queries = range(len(q))
        pairs = view_pairs(queries, range(2)) if self.args.symmetric else [(i, 0) for i in queries]
        out = mocov2_loss([(q[i], k[j], self.queues[j].rows) for i, j in pairs], self.args.temperature)
        for key, queue in zip(k, self.queues, strict=True):
            queue.push(key, batch.labels)  # after the look-ups, or a query's own key would be its negative
        return out | self.queues[-1].metrics()
