"""iBOT (Zhou et al., 2022, arXiv:2111.07832), and the objective of DINOv2 (Oquab et al., 2023, arXiv:2304.07193)."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import nonnegative_float
from utils.batch import Batch
from utils.ema import EMA
from utils.koleo import koleo_loss
from utils.masked_views import MaskedFeatures, add_mask_flags, check_masks, draw_masks, masked_features
from utils.optim import FlagGroup, ParamGroupRule
from utils.plan import Plan
from utils.row_chunks import map_row_chunks
from utils.self_distillation import (
    DistillationHead,
    add_distillation_flags,
    cross_entropy,
    frozen_prototypes,
    pairs_cross_entropy,
    teacher_temperature,
    view_logits,
)
from utils.step_modules import RunningMean, epoch_number
from utils.view_features import ViewFeatures
from utils.vision_transformer import patch_size, require_vision_transformer, take_tokens


def patch_loss(
    student: Tensor, teacher: Tensor, weights: Tensor, center: Tensor, student_t: float, teacher_t: Tensor | float
) -> Tensor:
    """Eq. 2 of each image, (n,):  -sum over patches i of m_i sum_k softmax((t_i - c) / T_t)_k log softmax(s_i / T_s)_k

    student, teacher: logits s, t (n, M, K) of M patches of the masked and of the whole view. weights: m (n, M): for
    masked patches 1 over their number in the image, else 0. center: c (K,). student_t, teacher_t: T_s, T_t.
    Deviation: the paper's m is 1 for masked patches; the official code has the mean, as here.
    """
    return (weights * cross_entropy(student, teacher, center, student_t, teacher_t)).sum(dim=1)


class IBOT(Method):
    """iBOT: DINO on masked views; for each masked patch also the distribution that the teacher gives it, seeing all.

    Eq. 3:  loss = DINO's loss of the class tokens + mean over images and large views of eq. 2, whose centre is its own.
    The teacher is the network that is evaluated and exported. --untied_head --koleo 0.1: the objective of DINOv2.
    Deviation: --clip_grad limits the norm of the whole gradient, the official code that of each parameter.
    Deviation: the last block of a block-wise mask may be incomplete, so that the drawn ratio is met exactly.
    Deviation: DINOv2 centres its largest networks by Sinkhorn's algorithm; here the mean of the outputs is the centre.
    """

    transformer_name = "ibot"

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        add_distillation_flags(parser, prototypes=8192, source="sec. 4.1")
        add_mask_flags(parser, source="sec. 4.1")
        parser.add_argument("--untied_head", action="store_true", help="a head of its own for the patches (DINOv2)")
        parser.add_argument("--koleo", type=nonnegative_float, default=0.0, metavar="WEIGHT",
                            help="weight of the KoLeo regularizer; 0.1 in DINOv2")  # fmt: skip

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        check_masks(args)
        self.patch_side = patch_size(require_vision_transformer(backbone, self.transformer_name))
        self.head = DistillationHead(args, dim)
        self.teacher_backbone, self.teacher_head = (EMA(x, args.tau, args.final_tau) for x in (backbone, self.head))
        if args.untied_head:
            self.patch_head = DistillationHead(args, dim)
            self.teacher_patch_head = EMA(self.patch_head, args.tau, args.final_tau)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.center, self.patch_center = (RunningMean((args.num_prototypes,), args.center_momentum) for _ in range(2))
        self.teacher_temperature, self.whole_epochs = teacher_temperature(args), epoch_number()

    @property
    def projector(self) -> nn.Module:
        """The layers whose output, the embedding, the alarms watch for collapse."""
        return self.head.mlp

    def eval_backbone(self) -> nn.Module:
        return self.teacher_backbone.teacher

    def param_group_rules(self) -> dict[str, ParamGroupRule]:
        return frozen_prototypes(self.args, "head", *["patch_head"] * self.args.untied_head)

    def forward_views(self, batch: Batch) -> ViewFeatures:
        large, teacher = batch.views[: self.large_views], self.teacher_backbone.teacher
        mask = draw_masks(self.args, batch.index, large, self.patch_side, self.plan.seed, self.whole_epochs.value)
        return masked_features(self.backbone, teacher, batch.views, len(large), mask, self.mask_token)

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(feats, MaskedFeatures)
        student, teacher = view_logits(self.head, feats.all), view_logits(self.teacher_head.teacher, feats.evaluated)
        temperatures = self.args.student_temperature, self.teacher_temperature.value
        out = pairs_cross_entropy(student, teacher, self.center.value, *temperatures)
        self.center.push(torch.cat(teacher).mean(dim=0))  # moves after this step: the loss takes the earlier mean
        patches = self._patch_loss(feats, *temperatures)
        out |= {"class_loss": out["loss"], "patch_loss": patches, "loss": out["loss"] + patches}
        if self.args.koleo:
            out["koleo_loss"] = torch.stack([koleo_loss(f) for f in feats.large]).sum()
            out["loss"] = out["loss"] + self.args.koleo * out["koleo_loss"]
        return out | {"tau": self.teacher_backbone.tau}

    def _patch_loss(self, feats: MaskedFeatures, student_t: float, teacher_t: Tensor) -> Tensor:
        name = "patch_head" if self.args.untied_head else "head"
        head, teacher_head = getattr(self, name), getattr(self, f"teacher_{name}").teacher
        with torch.no_grad():
            targets = teacher_head.bottleneck(feats.targets)
            # Logits are linear in the bottleneck: those of the mean are the mean over all patches.
            self.patch_center.push(teacher_head.logits(targets.mean(dim=(0, 1))))
        center, (_, positions, weights) = self.patch_center.value, feats.mask

        def of_images(s: Tensor, t: Tensor, weights: Tensor) -> tuple[Tensor]:
            return (patch_loss(head.logits(s), teacher_head.logits(t), weights, center, student_t, teacher_t),)

        student, teacher = head.bottleneck(take_tokens(feats.patches, positions)), take_tokens(targets, positions)
        (losses,) = map_row_chunks(of_images, positions.shape[1] * self.args.num_prototypes, student, teacher, weights)
        return losses.mean()
