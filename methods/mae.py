"""MAE (He et al., 2021, arXiv:2111.06377)."""

from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from methods.base import Method
from utils.arg_types import probability
from utils.batch import Batch
from utils.errors import UserError
from utils.masked_tokens import (
    FIXED_POSITIONS,
    MASKS,
    add_token_predictor_flags,
    normalize_tokens,
    patchify,
    prepare_backbone,
    token_predictor,
)
from utils.optim import FlagGroup
from utils.plan import Plan
from utils.precision import at_least_float32, full_precision
from utils.random import uniform
from utils.step_modules import epoch_number
from utils.view_features import ViewFeatures
from utils.vision_transformer import embed_patches, patch_size, pool_tokens, run_blocks, take_tokens, with_prefix

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@full_precision
def mae_loss(prediction: Tensor, patches: Tensor, norm_pixels: bool) -> Tensor:
    """Sec. 3, "Reconstruction target":  mean over masked patches and their pixels of (prediction - pixel)^2

    prediction, patches: (n, M, P), the P values of the M masked patches of each image. norm_pixels: pixels are those of
    the patch minus their mean and divided by their standard deviation.
    """
    prediction, patches = at_least_float32(prediction), at_least_float32(patches)
    if norm_pixels:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        patches = (patches - mean) * (variance + 1e-6).rsqrt()
    return (prediction - patches).square().mean()


@dataclass(frozen=True, kw_only=True)
class VisibleFeatures(ViewFeatures):
    """tokens: (N, P + V, D), normalized, of the class token and of V visible patches. visible, masked: their places."""

    tokens: Tensor
    visible: Tensor
    masked: Tensor


class MAE(Method):
    """MAE: reconstruct the pixels of the patches that a vision transformer was not shown, by a small decoder.

    The mask of an image is a function of (seed, epoch, image). The backbone's position embedding is fixed.
    Deviation: the encoder keeps timm's initial weights; the official code has Xavier's, which the decoder has here too.
    """

    large_views = 1
    supports_small_views = False
    transformer_name = "MAE"
    no_small_views_reason = "MAE reconstructs one view of each image"
    backbone: "VisionTransformer"

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        parser.set_defaults(optimizer="adamw", lr=1.5e-4, weight_decay=0.05, adam_betas=[0.9, 0.95])  # app. A.1
        parser.set_defaults(crop_scale=[0.2, 1.0], jitter=[0.0], gray=[0.0])  # app. A.1: crops and flips
        parser.add_argument("--mask_ratio", type=probability, default=0.75, help="share of masked patches (sec. 4.1)")
        add_token_predictor_flags(parser, "decoder", dim=512, layers=8, heads=16, source="sec. 4.1")
        parser.add_argument("--no_norm_pixels", dest="norm_pixels", action="store_false",
                            help="reconstruct the pixels as they are, not normalized in each patch")  # fmt: skip

    @staticmethod
    def length_defaults(epochs: int) -> dict[str, Any]:
        return {"warmup_epochs": 40} if epochs >= 400 else {}  # app. A.1: 800 epochs

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__(args, plan, backbone, dim)
        grid = prepare_backbone(backbone, self.transformer_name)
        self.patch, self.patches = patch_size(self.backbone), grid[0] * grid[1]
        self.visible = round(self.patches * (1 - args.mask_ratio))
        if not 0 < self.visible < self.patches:
            raise UserError(
                f"--mask_ratio {args.mask_ratio:g} leaves {self.visible} of {self.patches} patches visible; choose a "
                f"ratio that leaves from 1 to {self.patches - 1}"
            )
        pixels = 3 * self.patch**2
        self.decoder = token_predictor(args, "decoder", self.backbone.embed_dim, pixels, grid, nn.init.xavier_uniform_)
        self.epoch_number = epoch_number()

    def notes(self) -> list[str]:
        return [FIXED_POSITIONS]

    def forward_views(self, batch: Batch) -> VisibleFeatures:
        place = torch.arange(self.patches, device=batch.index.device)
        noise = uniform(self.plan.seed, MASKS, self.epoch_number.value, batch.index[:, None], place)  # (N, T)
        visible, masked = noise.argsort(dim=1).split([self.visible, self.patches - self.visible], dim=1)
        patches = take_tokens(embed_patches(self.backbone, batch.views[0]), visible)
        tokens = run_blocks(self.backbone, with_prefix(self.backbone, patches))
        features = [pool_tokens(self.backbone, tokens)]
        return VisibleFeatures(
            features, [], tokens=normalize_tokens(self.backbone, tokens), visible=visible, masked=masked
        )

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(feats, VisibleFeatures)
        prediction = self.decoder(feats.tokens, feats.visible, feats.masked[:, None])[:, 0]  # (N, M, P)
        patches = take_tokens(patchify(batch.views[0], self.patch), feats.masked)
        return {"loss": mae_loss(prediction, patches, self.args.norm_pixels)}
