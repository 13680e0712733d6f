"""What DINO and iBOT share: the head on top of features, the cross-entropy with a centred teacher, and their flags."""

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.arg_types import nonnegative_float, positive_float, positive_int, probability
from utils.ema import add_tau_flags
from utils.heads import Prototypes, add_projector_flags, projector
from utils.optim import FlagGroup, ParamGroupRule
from utils.precision import at_least_float32, full_precision, l2_normalize
from utils.step_modules import ScheduledValue, linear_warmup
from utils.view_features import view_pairs


def add_distillation_flags(parser: FlagGroup, prototypes: int, source: str) -> None:
    """Set the defaults of shared flags; add those of the head, the temperatures and the moving averages.

    source: the section of the paper with the settings, which DINO (arXiv:2104.14294, sec. 3.2) and iBOT share.
    """
    # The learning rate is per 256 images and falls to 1e-6.
    parser.set_defaults(optimizer="adamw", lr=5e-4, final_lr=1e-6, weight_decay=0.04, final_weight_decay=0.4,
                        clip_grad=3.0)  # fmt: skip
    # Colours of BYOL, those of small views last. Without small views crops begin at 14 % of the image, as the official
    # code of DINO advises.
    parser.set_defaults(crop_scale=[0.14, 1.0], jitter=[0.8], jitter_strengths=[0.4, 0.4, 0.2, 0.1], gray=[0.2],
                        blur=[1.0, 0.1, 0.5], solarize=[0.0, 0.2, 0.0])  # fmt: skip
    add_projector_flags(parser, hidden=2048, dim=256, layers=3, source=source)
    parser.add_argument("--num_prototypes", type=positive_int, default=prototypes,
                        help=f"outputs of the head ({source})")  # fmt: skip
    parser.add_argument("--head_norm", action="store_true", help="batch norm in the hidden layers of the head, as the "
                        "official code has for ResNets")  # fmt: skip
    parser.add_argument("--frozen_epochs", type=nonnegative_float, default=1.0,
                        help=f"first epochs in which the last layer of the head stays as it is ({source})")  # fmt: skip
    parser.add_argument("--student_temperature", type=positive_float, default=0.1,
                        help=f"temperature of the student's softmax ({source})")  # fmt: skip
    parser.add_argument("--teacher_temperature", type=positive_float, default=0.07,
                        help=f"temperature of the teacher's softmax ({source})")  # fmt: skip
    parser.add_argument("--warmup_teacher_temperature", type=positive_float, default=0.04,
                        help=f"the same at first, before its linear warm-up ({source})")  # fmt: skip
    parser.add_argument("--teacher_warmup_epochs", type=nonnegative_float, default=30.0,
                        help=f"epochs of linear warm-up of the teacher's temperature ({source})")  # fmt: skip
    parser.add_argument("--center_momentum", type=probability, default=0.9,
                        help=f"momentum of the mean of the teacher's outputs ({source})")  # fmt: skip
    add_tau_flags(parser, 0.996, source)


def frozen_prototypes(args: Namespace, *heads: str) -> dict[str, ParamGroupRule]:
    """Keep the prototypes of the heads of these names as they are for the first epochs, as the flags say."""
    return {f"{head}.prototypes": ParamGroupRule(frozen_epochs=args.frozen_epochs) for head in heads}


def teacher_temperature(args: Namespace) -> ScheduledValue:
    """Build the schedule of the teacher's temperature that the flags describe."""
    first, last, epochs = args.warmup_teacher_temperature, args.teacher_temperature, args.teacher_warmup_epochs
    return ScheduledValue(linear_warmup(first, last, epochs))


class DistillationHead(nn.Module):
    """Features (..., dim) -> logits (..., K): layers with GELU, unit length, cosines with K trained unit vectors.

    The unit vectors are `prototypes`: a linear layer with weight norm whose gains are fixed at 1.
    Deviation: initial weights are PyTorch's, for any width; the official code has N(0, 0.02), which is near them.
    """

    def __init__(self, args: Namespace, dim: int):
        super().__init__()
        self.mlp = projector(args, dim, last_norm=False, norm=args.head_norm, activation=nn.GELU)
        self.prototypes = Prototypes(args.proj_dim, args.num_prototypes)

    def bottleneck(self, features: Tensor) -> Tensor:
        """Unit vectors (..., proj_dim) of features (..., dim)."""
        rows: Tensor = self.mlp(features.flatten(0, -2))  # batch norms take rows
        return l2_normalize(rows).view(*features.shape[:-1], -1)

    def logits(self, z: Tensor) -> Tensor:
        """Cosines (..., K) of unit vectors (..., proj_dim) with the prototypes."""
        cosines: Tensor = self.prototypes(z)
        return cosines

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(self.bottleneck(features))


def view_logits(head: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """Logits (n, K) of each view's features (n, dim) by a `DistillationHead`, whose prototypes are normalized once."""
    assert isinstance(head, DistillationHead)
    logits = head.logits(torch.cat([head.bottleneck(features) for features in views]))
    return list(logits.split([len(features) for features in views]))


@full_precision
def cross_entropy(
    student: Tensor, teacher: Tensor, center: Tensor, student_t: float, teacher_t: Tensor | float
) -> Tensor:
    """DINO eq. 1 and 2:  -sum_k softmax((t - c) / T_t)_k log softmax(s / T_s)_k  of each row, (...).

    student: logits s (..., K). teacher: logits t (..., K), whose gradient stops. center: c (K,), the mean of earlier t.
    student_t, teacher_t: temperatures T_s and T_t.
    """
    p, log_p = _teacher_probabilities(teacher, center, teacher_t), _student_logarithms(student, student_t)
    return -(p * log_p).sum(dim=-1)


@full_precision
def pairs_cross_entropy(
    student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor, student_t: float, teacher_t: Tensor | float
) -> dict[str, Tensor]:
    """DINO eq. 3: `cross_entropy`, mean over images and over all pairs of a view and another, large one.

    student: logits (n, K) of all views of this rank's images, large ones first. teacher: logits (n, K) of the large
    views. teacher_entropy: mean entropy of the teacher's probabilities in nats; 0 if one output is certain, log K if
    all are alike. batch_entropy: entropy of their mean over this rank's images; near 0 all images have the same output.
    Deviation: the paper's equation is the sum over pairs; this is the mean, as in the official code.
    """
    p = [_teacher_probabilities(t, center, teacher_t) for t in teacher]
    log_p = [_student_logarithms(s, student_t) for s in student]
    terms = [-(b * log_a).sum(dim=1).mean() for log_a, b in view_pairs(log_p, p)]
    return {
        "loss": torch.stack(terms).mean(),
        "teacher_entropy": torch.special.entr(p[0]).sum(dim=1).mean(),
        "batch_entropy": torch.special.entr(p[0].mean(dim=0)).sum(),
    }


def _teacher_probabilities(logits: Tensor, center: Tensor, temperature: Tensor | float) -> Tensor:
    return F.softmax((at_least_float32(logits.detach()) - center) / temperature, dim=-1)


def _student_logarithms(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(at_least_float32(logits) / temperature, dim=-1)
