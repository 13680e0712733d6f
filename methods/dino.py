"""DINO (Caron et al., 2021, arXiv:2104.14294)."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.batch import Batch
from utils.ema import EMA
from utils.optim import FlagGroup, ParamGroupRule
from utils.plan import Plan
from utils.self_distillation import (
    DistillationHead,
    add_distillation_flags,
    frozen_prototypes,
    pairs_cross_entropy,
    teacher_temperature,
    view_logits,
)
from utils.step_modules import RunningMean
from utils.view_features import ViewFeatures


class DINO(Method):
    """DINO: give each view the output distribution that a moving average of the network gives another, large view.

    Eq. 1 to 3:  loss = mean over pairs of views and images of  -sum_k softmax((t - c) / T_t)_k log softmax(s / T_s)_k
    Eq. 4:       c   <- m c + (1 - m) mean of t,   once per optimizer step
    s, t: (K,) logits of student and teacher. The teacher is the network that is evaluated and exported.
    Deviation: --clip_grad limits the norm of the whole gradient, the official code that of each parameter.
    Deviation: with --small_views the shared scales of multi-crop hold, which are those of the paper's ResNet-50.
    """

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        add_distillation_flags(parser, prototypes=65536, source="sec. 3.2")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        self.head = DistillationHead(args, dim)
        self.teacher_backbone, self.teacher_head = (EMA(x, args.tau, args.final_tau) for x in (backbone, self.head))
        self.center = RunningMean((args.num_prototypes,), args.center_momentum)
        self.teacher_temperature = teacher_temperature(args)

    @property
    def projector(self) -> nn.Module:
        """The layers whose output, the embedding, the alarms watch for collapse."""
        return self.head.mlp

    def eval_backbone(self) -> nn.Module:
        return self.teacher_backbone.teacher

    def param_group_rules(self) -> dict[str, ParamGroupRule]:
        return frozen_prototypes(self.args, "head")

    def forward_views(self, batch: Batch) -> ViewFeatures:
        feats = super().forward_views(batch)
        evaluated = [self.teacher_backbone(view) for view in batch.views[: len(feats.large)]]
        return ViewFeatures(feats.large, feats.small, evaluated)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        assert feats.evaluated is not None
        student, teacher = view_logits(self.head, feats.all), view_logits(self.teacher_head.teacher, feats.evaluated)
        out = pairs_cross_entropy(
            student, teacher, self.center.value, self.args.student_temperature, self.teacher_temperature.value
        )
        self.center.push(torch.cat(teacher).mean(dim=0))  # moves after this step: the loss takes the earlier mean
        return out | {"tau": self.teacher_backbone.tau}
