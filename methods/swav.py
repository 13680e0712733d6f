"""SwAV (Caron et al., 2020, arXiv:2006.09882)."""

import math
from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import count, nonnegative_float, number, positive_float, positive_int
from utils.batch import Batch
from utils.errors import UserError
from utils.heads import Prototypes, add_projector_flags, projector
from utils.optim import FlagGroup, ParamGroupRule
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision, l2_normalize
from utils.queue import FeatureQueue
from utils.shares import share
from utils.sinkhorn import sinkhorn
from utils.step_modules import ScheduledValue
from utils.view_features import ViewFeatures, view_pairs

QUEUE_START = 15  # epochs
FILLING, IN_USE = 1, 2  # states of the queue; 0 before it fills


@full_precision
def swav_loss(scores: list[Tensor], codes: list[Tensor], temperature: float) -> Tensor:
    """Eq. 1 and 2:  -sum_k q_k log p_k,  p = softmax(z . C / T), q the code of another view of the image.

    scores: cosines z . C (n, K) of all views of this rank's images with the prototypes C, large views first. codes:
    (n, K) of the large views, without gradient. Mean over images and over all pairs of a view and another, large one.
    """
    log_p = [(at_least_float32(s) / temperature).log_softmax(dim=1) for s in scores]
    return torch.stack([-(q * p).sum(dim=1).mean() for p, q in view_pairs(log_p, codes)]).mean()


class SwAV(Method):
    """SwAV: predict the cluster that an online clustering of the batch gives another view of the image.

    The clusters of a batch share its images equally, by Sinkhorn-Knopp over the global batch and the queue.
    Deviation: the forward pass normalizes prototypes; the official code scales the weights themselves before it.
    """

    queue: Sequence[FeatureQueue]  # one for each large view, none without --queue_size

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        # Official code (facebookresearch/swav) for 4096 images: 4.8 and 0.0048, which is 0.3 and 0.0003 per 256.
        parser.set_defaults(optimizer="lars", lr=0.3, final_lr=0.0003, weight_decay=1e-6)
        # Views: official code, those of SimCLR.
        parser.set_defaults(crop_scale=[0.08, 1.0], jitter=[0.8], jitter_strengths=[0.8, 0.8, 0.8, 0.2], gray=[0.2],
                            blur=[0.5], solarize=[0.0])  # fmt: skip
        parser.add_argument("--temperature", type=positive_float, default=0.1, help="temperature of the softmax")
        parser.add_argument("--num_prototypes", type=number(int, 2), default=3000, help="number of prototypes")
        parser.add_argument("--freeze_prototypes_epochs", type=nonnegative_float, default=1.0,
                            help="epochs before the prototypes begin to train (official code)")  # fmt: skip
        parser.add_argument("--epsilon", type=positive_float, default=0.05, help="weight of the entropy of the codes")
        parser.add_argument("--sinkhorn_iterations", type=positive_int, default=3, help="iterations of Sinkhorn-Knopp")
        parser.add_argument("--queue_size", type=count, default=0,
                            help="earlier embeddings in an assignment, 3840 for batches of 256")  # fmt: skip
        parser.add_argument("--queue_start_epoch", type=count, default=QUEUE_START,
                            help="epochs before the queue begins to fill (official code)")  # fmt: skip
        add_projector_flags(parser, hidden=2048, dim=128, layers=2, source="official code")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.num_choices = args.num_prototypes
        self.projector = projector(args, dim, last_norm=False)
        self.prototypes = Prototypes(args.proj_dim, args.num_prototypes)
        self.queue = nn.ModuleList(  # type: ignore[assignment]  # torch does not type what a list of modules holds
            FeatureQueue(args.queue_size, args.proj_dim, plan.seed + i)
            for i in range(self.large_views if args.queue_size else 0)
        )
        epoch = plan.schedule.steps_per_epoch
        first = args.queue_start_epoch * epoch  # optimizer steps before the queue begins to fill
        rows = plan.training_set.images // plan.batch.forward_batch * plan.batch.forward_batch  # that an epoch brings
        full = first + args.queue_size // rows * epoch + math.ceil(args.queue_size % rows / plan.batch.global_batch)
        self.queue_state = ScheduledValue(lambda e, _: (round(e * epoch) >= first) + (round(e * epoch) >= full))
        check_settings(args, plan, full / epoch)

    def param_group_rules(self) -> dict[str, ParamGroupRule]:
        return {"prototypes": ParamGroupRule(frozen_epochs=self.args.freeze_prototypes_epochs)}

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        z = [l2_normalize(self.projector(f)) for f in feats.all]
        scores = [self.prototypes(x) for x in z]
        codes = [self._codes(i, s) for i, s in enumerate(scores[: len(feats.large)])]
        for queue, x in zip(self.queue, z, strict=False):
            if self.queue_state.number >= FILLING:  # after the codes, or the batch would count twice
                queue.push(x, batch.labels)
        nearest = scores[0].argmax(dim=1)
        distinct = torch.zeros_like(scores[0][0]).detach().index_fill_(0, nearest, 1.0).sum() / len(nearest)
        return {"loss": swav_loss(scores, codes, self.args.temperature), "distinct_prototypes": distinct}

    @torch.no_grad()
    def _codes(self, view: int, scores: Tensor) -> Tensor:
        """Codes (n, K) of a large view, assigned with those of the global batch and of the view's queue (eq. 3 to 5).

        Each rank scores its share of the queue, with the present prototypes.
        """
        rows = [scores]
        if self.queue and self.queue_state.number == IN_USE:
            own = share(self.args.queue_size)
            rows.append(self.prototypes(self.queue[view].rows[own.start : own.stop]))
        return sinkhorn(torch.cat(rows), self.args.epsilon, self.args.sinkhorn_iterations)[: len(scores)]


def check_settings(args: Namespace, plan: Plan, full: float) -> None:
    """Refuse what could not work. full: epochs before the queue is in use."""
    images, epochs = plan.training_set.images, plan.schedule.total_steps / plan.schedule.steps_per_epoch
    if args.num_prototypes > images:
        raise UserError(f"--num_prototypes {args.num_prototypes} are more than the {images} training images; lower it")
    if not args.queue_size and args.queue_start_epoch != QUEUE_START:
        raise UserError("--queue_start_epoch has no effect without --queue_size; add that, or remove it")
    if args.queue_size and full >= epochs:
        started = f"--queue_start_epoch {args.queue_start_epoch}: the queue of {args.queue_size} would be in use"
        raise UserError(f"{started} after {full:.3g} of {epochs:.3g} epochs, and never used; lower it or --queue_size")
