"""I-JEPA (Assran et al., 2023, arXiv:2301.08243)."""

import functools
from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Method
from utils.arg_types import area_share, positive_int
from utils.batch import Batch
from utils.block_masks import Blocks, BlockSampler
from utils.ema import EMA, add_tau_flags
from utils.masked_tokens import (
    FIXED_POSITIONS,
    add_token_predictor_flags,
    normalize_tokens,
    prepare_backbone,
    token_predictor,
)
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision
from utils.step_modules import epoch_number
from utils.view_features import ViewFeatures
from utils.vision_transformer import embed_patches, pool_tokens, run_blocks, take_tokens, with_prefix

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@full_precision
def ijepa_loss(prediction: Tensor, target: Tensor, distinct: Tensor) -> dict[str, Tensor]:
    """Sec. 3, "Loss":  1/B sum_b 1/|B_b| sum_{j in B_b} d(prediction_j, sg(h_j)),  mean over images

    prediction, target: (n, B, K, D) of the K patches of the B target blocks of each image. distinct: (n, B, K) bool,
    False for repeated patches, which do not count. h: target, each token normalized to mean 0 and variance 1. d: smooth
    L1 distance, mean over D. target_std: standard deviation of the coordinates of h over images and patches; 0 is
    collapse.
    Deviation: d is that of the official code; the paper has the squared distance.
    """
    h = F.layer_norm(at_least_float32(target.detach()), target.shape[-1:])  # sg
    distance = F.smooth_l1_loss(at_least_float32(prediction), h, reduction="none").mean(dim=-1)  # (n, B, K)
    blocks = (distance * distinct).sum(dim=-1) / distinct.sum(dim=-1)  # (n, B)
    return {"loss": blocks.mean(), "target_std": h.flatten(0, -2).std(dim=0).mean()}


@dataclass(frozen=True, kw_only=True)
class ContextFeatures(ViewFeatures):
    """tokens: (N, P + C, D) of the context, by the student. targets: (N, T, D) of the whole image, by the teacher."""

    tokens: Tensor
    targets: Tensor
    blocks: Blocks


class IJEPA(Method):
    """I-JEPA: predict what a moving average of the network makes of four blocks of an image from the rest of it.

    The target network is evaluated. The backbone's position embedding is fixed.
    Deviation: the class token of a backbone that has one is shown to the predictor; the official networks have none.
    """

    large_views = 1
    supports_small_views = False
    transformer_name = "I-JEPA"
    no_small_views_reason = "I-JEPA predicts blocks of one view of each image"
    backbone: "VisionTransformer"

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        # App. A.1 and the official configuration, whose rates are those of a batch of 2048 images.
        parser.set_defaults(optimizer="adamw", lr=1.25e-4, final_lr=1.25e-7, weight_decay=0.04, final_weight_decay=0.4)
        parser.set_defaults(crop_scale=[0.3, 1.0], flip=0.0, jitter=[0.0], gray=[0.0], pool="avg")
        add_tau_flags(parser, 0.996, "sec. 4", path="a line")
        parser.add_argument("--target_blocks", type=positive_int, default=4, help="target blocks of an image (sec. 4)")
        for name, scale in (("target", [0.15, 0.2]), ("context", [0.85, 1.0])):
            parser.add_argument(f"--{name}_scale", type=area_share, nargs=2, default=scale, metavar=("MIN", "MAX"),
                                help=f"min and max fraction of the patches in a {name} block (sec. 4)")  # fmt: skip
        add_token_predictor_flags(parser, "predictor", dim=384, layers=6, heads=12, source="app. A.1")

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        grid = prepare_backbone(backbone, self.transformer_name)
        self.sampler = BlockSampler(grid, args.target_blocks, args.target_scale, args.context_scale)
        width = self.backbone.embed_dim
        init = functools.partial(nn.init.trunc_normal_, std=0.02)
        self.predictor = token_predictor(args, "predictor", width, width, grid, init)
        self.target = EMA(backbone, args.tau, args.final_tau, schedule="linear")
        self.epoch_number = epoch_number()

    def notes(self) -> list[str]:
        return [FIXED_POSITIONS]

    def eval_backbone(self) -> nn.Module:
        return self.target.teacher

    def forward_views(self, batch: Batch) -> ContextFeatures:
        view, teacher = batch.views[0], cast("VisionTransformer", self.target.teacher)
        blocks = self.sampler.draw(self.plan.seed, self.epoch_number.value, batch.index)
        patches = take_tokens(embed_patches(self.backbone, view), blocks.context)
        tokens = run_blocks(self.backbone, with_prefix(self.backbone, patches))
        with torch.no_grad():
            whole = run_blocks(teacher, with_prefix(teacher, embed_patches(teacher, view)))
            evaluated = [pool_tokens(teacher, whole)]
        return ContextFeatures(
            [pool_tokens(self.backbone, tokens)], [], evaluated, tokens=normalize_tokens(self.backbone, tokens),
            targets=normalize_tokens(teacher, whole)[:, teacher.num_prefix_tokens :], blocks=blocks,
        )  # fmt: skip

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(feats, ContextFeatures)
        prediction = self.predictor(feats.tokens, feats.blocks.context, feats.blocks.targets)  # (N, B, K, D)
        targets = take_tokens(feats.targets, feats.blocks.targets.flatten(1)).view_as(prediction)
        return ijepa_loss(prediction, targets, feats.blocks.distinct) | {"tau": self.target.tau}
