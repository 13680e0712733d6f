"""NNCLR (Dwibedi et al., 2021, arXiv:2104.14548)."""

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method
from utils.arg_types import positive_float, positive_int
from utils.batch import Batch
from utils.distributed import gather_together, rank
from utils.errors import UserError
from utils.heads import add_predictor_flags, add_projector_flags, predictor, projector
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.queue import FeatureQueue
from utils.row_chunks import map_row_chunks
from utils.view_features import ViewFeatures, view_pairs
from utils.vision_transformer import convolutional_notes


@full_precision
def nnclr_loss(rows: Tensor, index: list[Tensor], p: list[Tensor], temperature: float) -> Tensor:
    """Eq. 3 and its transpose:  -log e(NN_i . p_i) / sum_k e(NN_i . p_k)  and with  sum_k e(NN_k . p_i)  instead.

    rows: (K, D) unit rows of the queue. index: (n,) positions in it of the neighbours NN of the large views of this
    rank's images. p: (n, D) unit predictions of all views, large ones first. k runs over the N images of the global
    batch; mean over images, over the two terms and over the pairs of a view and the neighbour of another, large one.
    Deviation: the paper has two views, and writes the transposed term without the mean.
    """
    # The queue is equal on all ranks: positions say as much as the neighbours themselves.
    all_index, all_p = gather_together(torch.stack(index, dim=1), torch.stack(p, dim=1))  # (N, L), (N, V, D)
    nn, all_nn = [rows[i] for i in index], [rows[i] for i in all_index.unbind(dim=1)]
    self_index = torch.arange(len(p[0]), device=p[0].device) + rank() * len(p[0])  # (n,) columns of this rank's images
    pairs = list(zip(view_pairs(p, nn), view_pairs(all_p.unbind(dim=1), all_nn), strict=True))
    columns = 2 * len(pairs) * len(all_p)  # of the similarities of all terms together
    terms = [
        _cross_entropy(queries, keys, self_index, temperature, columns)
        for (local_p, local_nn), (global_p, global_nn) in pairs
        for queries, keys in ((local_nn, global_p), (local_p, global_nn))
    ]
    return torch.stack(terms).mean()


def _cross_entropy(queries: Tensor, keys: Tensor, index: Tensor, temperature: float, columns: int) -> Tensor:
    """Mean over (n, D) queries i of  -log e(q_i . k_index_i) / sum_k e(q_i . k_k)  with (N, D) keys.

    columns: of the matrix that is computed in chunks of rows, of which the similarities are a part.
    """

    def terms(queries: Tensor, index: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(queries @ keys.T / temperature, index, reduction="sum")[None],)

    (sums,) = map_row_chunks(terms, columns, queries, index)
    return sums.sum() / len(queries)


class NNCLR(Method):
    """NNCLR: attract each view to the nearest neighbour of the other among the embeddings of earlier batches."""

    queue: FeatureQueue

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="lars", lr=0.3, weight_decay=1e-6)  # sec. 4.1
        # Views: sec. 4.1, which takes those of BYOL.
        parser.set_defaults(crop_scale=[0.08, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.2, 0.1], gray=[0.2],
                            blur=[1.0, 0.1], solarize=[0.0, 0.2])  # fmt: skip
        parser.add_argument(
            "--temperature", type=positive_float, default=0.1, help="temperature of the softmax (sec. 4.1)"
        )
        add_projector_flags(parser, hidden=2048, dim=256, layers=3, source="sec. 4.1")
        add_predictor_flags(parser, hidden=4096, source="sec. 4.1")
        parser.add_argument(
            "--no_predictor", dest="predictor", action="store_false", help="compare embeddings without a predictor"
        )
        parser.add_argument("--queue_size", type=positive_int, default=98304, help="rows of the support set (sec. 4.1)")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        if args.queue_size < plan.batch.global_batch:
            raise UserError(
                f"--queue_size {args.queue_size} is smaller than the global batch of {plan.batch.global_batch} images; "
                f"raise --queue_size or lower --batch_size"
            )
        self.projector = projector(args, dim, last_norm=True)
        self.predictor = predictor(args) if args.predictor else nn.Identity()
        self.queue = FeatureQueue(args.queue_size, args.proj_dim, plan.seed)

    def notes(self) -> list[str]:
        return convolutional_notes("NNCLR", self.backbone)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.all]
        p = [l2_normalize(self.predictor(x)) for x in z]
        queries = [l2_normalize(x).detach() for x in z[: len(feats.large)]]
        found = [self.queue.nearest(q) for q in queries]
        loss = nnclr_loss(self.queue.rows, [index for index, _ in found], p, self.args.temperature)
        index, similarity = found[0]
        out = {"loss": loss, "nn_similarity": similarity.mean(), **self._neighbour_metrics(index, batch.labels)}
        self.queue.push(queries[0], batch.labels)  # after the look-ups, or the batch would find itself
        return out

    def _neighbour_metrics(self, index: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Logged metrics of the neighbours at the (n,) positions `index` of the queue, and of the queue.

        nn_label_acc: per cent of neighbours with the label of their query, where both labels are known. nn_distinct:
        share of different rows among the neighbours; near 0 the queue has collapsed to a few favourites.
        """
        distinct = torch.zeros(len(self.queue.rows), device=index.device).index_fill_(0, index, 1.0).sum() / len(index)
        out = {"nn_distinct": distinct, **self.queue.metrics()}
        if self.probe is not None:
            neighbour_labels = self.queue.labels[index]
            known = (neighbour_labels >= 0) & (labels >= 0)
            out["nn_label_acc"] = 100 * ((neighbour_labels == labels) & known).sum() / known.sum().clamp(min=1)
        return out
