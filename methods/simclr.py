"""SimCLR (Chen et al., 2020, arXiv:2002.05709)."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import positive_float
from utils.batch import Batch
from utils.distributed import gather, gather_together
from utils.errors import UserError
from utils.heads import add_projector_flags, projector
from utils.nt_xent import decoupled_nt_xent, log_normalizer, other_views, unit_views
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import full_precision
from utils.row_chunks import map_row_chunks
from utils.view_features import ViewFeatures

SIGMA = 0.5  # of the weights of DCLW


@full_precision
def nt_xent(views: list[Tensor], temperature: float) -> dict[str, Tensor]:
    """Eq. 1:  -log  e(z_i . z_j) / sum_{k != i} e(z_i . z_k),  e(s) = exp(s / T), mean over positive pairs (i, j).

    views: V tensors (n, D), embeddings of V views of this rank's n images. i, k run over all views of all N images of
    the global batch, and j over the other views of the image of i: with two views the loss of the paper.
    Deviation: the paper has two views; the mean over several positives stands outside the logarithm.
    """
    v = len(views)
    z, self_index = unit_views(views)
    all_z = gather(z)  # (NV, D)

    def terms(z: Tensor, self_index: Tensor) -> tuple[Tensor, Tensor]:
        logits = z @ all_z.T / temperature  # (m, NV)
        positive = logits.gather(1, other_views(self_index, v))  # by columns: a boolean mask would wait for the GPU
        return log_normalizer(logits, self_index) - positive.mean(dim=1), positive

    loss, positive = map_row_chunks(terms, len(all_z), z, self_index)
    return {"loss": loss.mean(), "positive_similarity": positive.mean() * temperature}


@full_precision
def supcon(views: list[Tensor], labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """SupCon (Khosla et al., 2020, arXiv:2004.11362), eq. 2, L_out:
    -1/|P(i)| sum_{p in P(i)} log  e(z_i . z_p) / sum_{k != i} e(z_i . z_k),  mean over i.

    views: as in `nt_xent`. labels: (n,) of this rank's images. P(i): all other views of i's image and all views of
    images of its class; an image of unknown label, -1, has only its own. One image per class: NT-Xent.
    """
    z, self_index = unit_views(views)
    # Unknown labels become distinct labels: below -1, by the position of the image in the global batch.
    labels = torch.where(labels < 0, -2 - self_index[:: len(views)] // len(views), labels).repeat_interleave(len(views))
    all_z, all_labels = gather_together(z, labels)  # (NV, D), (NV,)

    def terms(z: Tensor, labels: Tensor, self_index: Tensor) -> tuple[Tensor, Tensor]:
        logits = z @ all_z.T / temperature  # (m, NV)
        positive = (labels[:, None] == all_labels).to(logits.dtype)  # (m, NV)
        positive[torch.arange(len(z), device=z.device), self_index] = 0
        similarity = (logits * positive).sum(dim=1) / positive.sum(dim=1)  # (m,) mean over P(i)
        return log_normalizer(logits, self_index) - similarity, similarity

    loss, similarity = map_row_chunks(terms, len(all_z), z, labels, self_index)
    return {"loss": loss.mean(), "positive_similarity": similarity.mean() * temperature}


class SimCLR(Method):
    """SimCLR: attract views of one image (--supervised: of one class, SupCon) and repel all others.

    --decoupled (DCL) leaves the views of the image out of the sum over all others, --decoupled_weights (DCLW) weighs
    each positive pair.
    """

    flag_rules = ((("decoupled_weights",), "--decoupled", lambda args: args.decoupled),)

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="lars", lr=0.3, weight_decay=1e-6)  # sec. 2.2 and app. B.6
        # Views: app. A.
        parser.set_defaults(crop_scale=[0.08, 1.0], jitter=[0.8], jitter_strengths=[0.8, 0.8, 0.8, 0.2], gray=[0.2],
                            blur=[0.5], solarize=[0.0])  # fmt: skip
        parser.add_argument(
            "--temperature", type=positive_float, default=0.1, help="temperature of the softmax (sec. 5.1)"
        )
        parser.add_argument(
            "--supervised", action="store_true", help="images of one class are positives of each other (SupCon)"
        )
        parser.add_argument("--decoupled", action="store_true",
                            help="no positives in the denominator of the softmax (DCL, arXiv:2110.06848)")  # fmt: skip
        parser.add_argument("--decoupled_weights", action="store_true",
                            help="larger weights of positive pairs with a low similarity (DCLW)")  # fmt: skip
        add_projector_flags(parser, hidden=2048, dim=128, layers=2, source="sec. 4.2")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        if args.supervised:
            plan.training_set.require_labels("--supervised")
        if args.supervised and args.decoupled:
            raise UserError("--supervised and --decoupled name two losses, and a run has one; remove one of them")
        v = self.large_views + plan.views.small_views
        own = v if args.decoupled else 1  # views of an image that are no choices of its views
        # A view's own class is many of SupCon's choices.
        self.num_choices = None if args.supervised else plan.batch.forward_batch * v - own
        self.projector = projector(args, dim, last_norm=True)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        views = [self.projector(f) for f in feats.all]
        if self.args.supervised:
            return supcon(views, batch.labels, self.args.temperature)
        if self.args.decoupled:
            return decoupled_nt_xent(views, self.args.temperature, SIGMA if self.args.decoupled_weights else None)
        return nt_xent(views, self.args.temperature)
