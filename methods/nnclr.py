"""NNCLR (Dwibedi et al., 2021, arXiv:2104.14548)."""

from argparse import ArgumentParser, Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Features, Method
from utils.args import positive_float, positive_int
from utils.batch import Batch
from utils.distributed import gather, rank
from utils.errors import UserError
from utils.heads import mlp
from utils.precision import full_precision, normalize
from utils.queue import FeatureQueue


@full_precision
def nnclr_loss(neighbour: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Eq. 3 and its transpose:  -log e(NN_i . p_i) / sum_k e(NN_i . p_k)  and the same with  sum_k e(NN_k . p_i).

    neighbour: (n, D) unit rows of the queue, nearest to one view of this rank's images. p: (n, D) unit predictions
    of the other view. k runs over the N images of the global batch; mean over images and over the two terms.
    """
    own = torch.arange(len(p), device=p.device) + rank() * len(p)
    terms = (F.cross_entropy(a @ gather(b).T / temperature, own) for a, b in ((neighbour, p), (p, neighbour)))
    return sum(terms, p.new_zeros(())) / 2


class NNCLR(Method):
    """The nearest neighbour of one view, among the embeddings of earlier batches, is the positive of the other."""

    queue: FeatureQueue

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        parser.set_defaults(optimizer="lars", lr=0.3, weight_decay=1e-6)  # sec. 4.1
        parser.add_argument("--temperature", type=positive_float, default=0.1, help="of the softmax (sec. 4.1)")
        parser.add_argument("--hidden_mlp", type=positive_int, default=2048, help="hidden widths of the projector")
        parser.add_argument("--proj_dim", type=positive_int, default=256, help="width of the embedding (sec. 4.1)")
        parser.add_argument("--pred_hidden_mlp", type=positive_int, default=4096, help="hidden width of the predictor")
        parser.add_argument(
            "--no_predictor", dest="predictor", action="store_false", help="compare embeddings directly"
        )
        parser.add_argument("--queue_size", type=positive_int, default=98304, help="rows of the support set (sec. 4.1)")

    def __init__(self, args: Namespace, backbone: nn.Module, dim: int):
        super().__init__(args, backbone, dim)
        if args.queue_size < args.global_batch:
            raise UserError(
                f"--queue_size {args.queue_size} is smaller than the global batch of {args.global_batch}; "
                f"raise it or lower --batch_size"
            )
        self.projector = mlp(dim, args.hidden_mlp, args.hidden_mlp, args.proj_dim, last_norm=True)
        d, hidden = args.proj_dim, args.pred_hidden_mlp
        self.predictor = mlp(d, hidden, d, last_norm=False) if args.predictor else nn.Identity()
        self.queue = FeatureQueue(args.queue_size, d, args.seed)

    def training_loss(self, feats: Features, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.large]
        p1, p2 = (normalize(self.predictor(x)) for x in z)
        z1, z2 = (normalize(x).detach() for x in z)
        (row1, similarity), (row2, _) = self.queue.nearest(z1), self.queue.nearest(z2)
        nn1, nn2 = self.queue.rows[row1], self.queue.rows[row2]
        t = self.args.temperature
        loss = (nnclr_loss(nn1, p2, t) + nnclr_loss(nn2, p1, t)) / 2
        out = {"loss": loss, "nn_similarity": similarity.mean(), **self._health(row1, batch.labels)}
        self.queue.push(z1, batch.labels)  # after the look-ups, or the batch would find itself
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
