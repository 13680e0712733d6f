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
from utils.nearest_neighbours import add_queue_size_flag, build_queue, neighbour_metrics
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision, l2_normalize
from utils.row_chunks import map_row_chunks
from utils.view_features import ViewFeatures, view_pairs
from utils.vision_transformer import convolutional_notes


@full_precision
def nnclr_loss(rows: Tensor, index: list[Tensor], p: list[Tensor], temperature: float) -> Tensor:
    """Eq. 3 and its transpose:  -log e(NN_i . p_i) / sum_k e(NN_i . p_k)  and with  sum_k e(NN_k . p_i)  instead.

    rows: (K, D) unit rows of the queue. index: positions in it of the neighbours NN of the large views of this rank's
    images, (n,), or (n, M) of the M nearest. p: (n, D) unit predictions of all views, large ones first. k runs over the
    N images of the global batch; mean over images, over the two terms, over the pairs of a view and the neighbour of
    another, large one, and over the M neighbours, each among those that are equally near to the other images.
    Deviation: the paper has two views, and writes the transposed term without the mean.
    """
    index = [i.view(len(i), -1) for i in index]  # (n, M)
    # The queue is equal on all ranks: positions say as much as the neighbours themselves.
    all_index, all_p = gather_together(torch.stack(index, dim=1), torch.stack(p, dim=1))  # (N, L, M), (N, V, D)
    self_index = torch.arange(len(p[0]), device=p[0].device) + rank() * len(p[0])  # (n,) columns of this rank's images
    pairs: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = []  # (of this rank, of all ranks)
    for m in range(all_index.shape[2]):
        nn, all_nn = [rows[i[:, m]] for i in index], [rows[i] for i in all_index[:, :, m].unbind(dim=1)]
        pairs += zip(view_pairs(p, nn), view_pairs(all_p.unbind(dim=1), all_nn), strict=True)
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
        add_queue_size_flag(parser, 98304, "sec. 4.1")
        parser.add_argument("--top_k", type=positive_int, default=1,
                            help="neighbours of an embedding; the loss is the mean over them")  # fmt: skip
        parser.add_argument("--same_class_neighbours", action="store_true",
                            help="neighbours among images of the same class, for studies")  # fmt: skip
        parser.add_argument("--push_views", type=int, choices=[1, 2], default=1,
                            help="large views of an image whose embeddings enter the support set")  # fmt: skip

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        if args.top_k > args.queue_size:
            raise UserError(f"--top_k {args.top_k} is more than --queue_size {args.queue_size} holds; lower --top_k")
        if args.same_class_neighbours:
            plan.training_set.require_labels("--same_class_neighbours")
        self.projector = projector(args, dim, last_norm=True)
        self.predictor = predictor(args) if args.predictor else nn.Identity()
        self.queue = build_queue(args, plan, args.proj_dim, rows_per_image=args.push_views)

    def notes(self) -> list[str]:
        return convolutional_notes("NNCLR", self.backbone)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(f) for f in feats.all]
        p = [l2_normalize(self.predictor(x)) for x in z]
        queries = [l2_normalize(x).detach() for x in z[: len(feats.large)]]
        classes = batch.labels if self.args.same_class_neighbours else None
        found = [self.queue.nearest_several(q, self.args.top_k, labels=classes) for q in queries]
        loss = nnclr_loss(self.queue.rows, [index for index, _ in found], p, self.args.temperature)
        index, similarity = (x[:, 0] for x in found[0])  # of the nearest neighbours
        metrics = neighbour_metrics(self.queue, index, similarity, batch.labels, self.probe is not None)
        rows, labels = queries[0], batch.labels
        if self.args.push_views > 1:  # by image, then by view: the order is equal on any number of processes
            rows, labels = torch.stack(queries, dim=1).flatten(0, 1), labels.repeat_interleave(len(queries))
        self.queue.push(rows, labels)  # after the look-ups, or the batch would find itself
        return {"loss": loss, **metrics}
