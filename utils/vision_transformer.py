"""Tokens of timm's vision transformers: patch embedding, class token, blocks and pooling as separate steps.

    patches = embed_patches(backbone, x)                           # (N, T, D), positions added
    tokens = run_blocks(backbone, with_prefix(backbone, patches))  # (N, P + T, D), class token first
    features = pool_tokens(backbone, tokens)                       # (N, D), equal to backbone(x)

Between the steps a method may replace patches by a mask token (argument of `embed_patches`) or keep some of the tokens
(`take_tokens`). All sizes are those of the arguments, so the host never waits for a GPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.precision import at_least_float32

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SUITABLE = "a plain vision transformer of timm, such as vit_small_patch16_224 or deit_tiny_patch16_224"


def is_vision_transformer(backbone: nn.Module) -> bool:
    """Return True for timm's own VisionTransformer (vit_*, deit_*) with one convolution as patch embedding.

    Subclasses (distilled DeiT) and networks with a convolutional stem before the transformer compute their tokens in
    another way.
    """
    if not type(backbone).__module__.startswith("timm."):  # spares other networks the import
        return False
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    return type(backbone) is VisionTransformer and isinstance(backbone.patch_embed, PatchEmbed)


def require_vision_transformer(backbone: nn.Module, method_name: str) -> VisionTransformer:
    """Return the backbone if its tokens are accessible, else raise a UserError. method_name: begins the error."""
    if not is_vision_transformer(backbone):
        raise UserError(
            f"{method_name} works on the tokens of a vision transformer, and the backbone is a "
            f"{type(backbone).__name__}; choose {SUITABLE}"
        )
    return backbone  # type: ignore[return-value]


def convolutional_notes(method_name: str, backbone: nn.Module) -> list[str]:
    """A remark for vision transformers, of a method whose paper trains convolutional networks alone; else none."""
    if not is_vision_transformer(backbone):
        return []
    return [
        f"{method_name}'s paper and its settings are for convolutional networks; a vision transformer needs others "
        f"(MoCo v3 trains it with --optimizer adamw --lr 1.5e-4 --weight_decay 0.1 --warmup_epochs 40), and methods "
        f"designed for transformers may suit it better"
    ]


def patch_size(backbone: VisionTransformer) -> int:
    """Side of a patch in pixels."""
    return int(backbone.patch_embed.patch_size[0])


def patch_grid(backbone: VisionTransformer, x: Tensor) -> tuple[int, int]:
    """(rows, columns) of patches of images (N, 3, H, W); token t is the patch in row t // columns."""
    height, width = backbone.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
    return int(height), int(width)


def embed_patches(
    backbone: VisionTransformer, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
) -> Tensor:
    """Embed the patches of images (N, 3, H, W) and add their positions: (N, T, D), without class and register tokens.

    mask: (N, T) bool, True where mask_token, of D values, replaces the embedding before the position is added (iBOT).
    Sizes other than the one that the backbone was built for need dynamic_img_size; their positions are interpolated.
    """
    patches: Tensor = backbone.patch_embed(x)  # (N, T, D), with dynamic_img_size (N, rows, columns, D)
    patches = patches.reshape(len(x), -1, patches.shape[-1])
    if mask is not None:
        assert mask_token is not None, "a mask needs a mask token"
        patches = torch.where(mask[..., None], mask_token.reshape(1, 1, -1), patches)
    positions = _positions(backbone, patch_grid(backbone, x))
    return patches if positions is None else patches + positions


def prefix_tokens(backbone: VisionTransformer, n: int) -> Tensor:
    """Class token and register tokens of n images, with their positions: (n, P, D); P is 0 where there are none."""
    tokens: list[Tensor] = [token for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    if not tokens:
        return torch.zeros(n, 0, backbone.embed_dim, device=backbone.patch_embed.proj.weight.device)
    prefix = torch.cat(tokens, dim=1)  # (1, P, D)
    if backbone.pos_embed is not None and not backbone.no_embed_class:
        prefix = prefix + backbone.pos_embed[:, : backbone.num_prefix_tokens]
    return prefix.expand(n, -1, -1)


def with_prefix(backbone: VisionTransformer, patches: Tensor) -> Tensor:
    """Put the class and register tokens before the patches: (N, T, D) -> (N, P + T, D), as `run_blocks` takes them."""
    prefix = prefix_tokens(backbone, len(patches))
    return torch.cat([prefix, patches], dim=1) if prefix.shape[1] else patches


def take_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select tokens by position: (N, T, D) and (N, K) int64 -> (N, K, D)."""
    return torch.take_along_dim(tokens, index[..., None], dim=1)


def run_blocks(backbone: VisionTransformer, tokens: Tensor) -> Tensor:
    """Compute all blocks and the final norm: (N, T, D) -> (N, T, D), for any number and choice of tokens.

    An average-pooled network has its final norm after the average, in `pool_tokens`.
    """
    out: Tensor = backbone.norm(backbone.blocks(backbone.norm_pre(backbone.pos_drop(tokens))))
    return out


def run_last_blocks(backbone: VisionTransformer, tokens: Tensor, count: int) -> list[Tensor]:
    """Compute all blocks and return the output of the last `count`, first to last, each after the final norm."""
    tokens, outputs = backbone.norm_pre(backbone.pos_drop(tokens)), []
    for i, block in enumerate(backbone.blocks):
        tokens = block(tokens)
        if i >= len(backbone.blocks) - count:
            outputs.append(backbone.norm(tokens))
    return outputs


def pool_tokens(backbone: VisionTransformer, tokens: Tensor) -> Tensor:
    """Pool the output of `run_blocks` as the backbone itself does: (N, P + T, D) -> (N, D).

    tokens: the P class and register tokens first. The class token, or the average of the others, by the backbone's
    `global_pool`.
    """
    pooled: Tensor = backbone.forward_head(tokens, pre_logits=True)
    return pooled


def has_class_attention(network: nn.Module) -> bool:
    """Return True if `class_token_attention` shows what the features are made of: those of a class token, in blocks
    with one attention after their first norm."""
    if not is_vision_transformer(network) or network.cls_token is None or network.global_pool != "token":
        return False
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    last = network.blocks[-1]  # type: ignore[index]
    return type(last) is Block and type(last.attn) is Attention


def class_token_attention(backbone: VisionTransformer, x: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block: (N, 3, H, W) -> (N, heads, rows, columns).

    softmax_t(q . k_t / sqrt(d)) of the class token's query q and the keys k_t of all tokens, per head of width d. The
    shares of class and register tokens are left out, so that a map sums to less than 1. timm's attention is fused and
    keeps no such numbers, so they are computed anew from its queries and keys.
    """
    tokens = backbone.norm_pre(backbone.pos_drop(with_prefix(backbone, embed_patches(backbone, x))))
    for block in backbone.blocks[:-1]:
        tokens = block(tokens)
    last: Any = backbone.blocks[-1]
    n, t, _ = tokens.shape
    qkv = last.attn.qkv(last.norm1(tokens)).reshape(n, t, 3, last.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = last.attn.q_norm(qkv[0, :, :, :1]), last.attn.k_norm(qkv[1])  # (N, heads, 1, d), (N, heads, t, d)
    attention = (at_least_float32(q @ k.transpose(-2, -1)) * last.attn.scale).softmax(dim=-1)
    maps: Tensor = attention[:, :, 0, backbone.num_prefix_tokens :].unflatten(2, patch_grid(backbone, x))
    return maps


def sincos_position_embedding(dim: int, rows: int, columns: int, prefix: int = 0) -> Tensor:
    """Fixed position embedding (1, prefix + rows * columns, dim), float32: zeros for the prefix tokens, then the grid.

    The four quarters of a position are  sin(c w_i), cos(c w_i), sin(r w_i), cos(r w_i)  of its column c and its row r,
    with  w_i = 10000^(-i / (dim / 4)),  as in MAE (arXiv:2111.06377) and MoCo v3 (arXiv:2104.02057). dim: a multiple
    of 4.
    """
    if dim % 4:
        raise UserError(f"a fixed position embedding needs a width that is a multiple of 4, got {dim}; choose another")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    angles = [position.reshape(-1, 1) * omega for position in (column, row)]  # (rows * columns, dim / 4)
    grid = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([grid.new_zeros(prefix, dim), grid])[None].float()


def resample_positions(backbone: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    """Interpolate a checkpoint's position embeddings, of square images of another size, for the backbone.

    name, tensor: of a tensor of the checkpoint that has another shape than the backbone's of this name. Returns None
    where it holds no position embeddings (1, P + rows * rows, D) of the same width D and number P of other tokens.
    """
    if name != "pos_embed" or not is_vision_transformer(backbone):
        return None
    own: Tensor = backbone.pos_embed  # type: ignore[assignment]
    prefix = 0 if backbone.no_embed_class else int(backbone.num_prefix_tokens)  # type: ignore[arg-type]
    if tensor.ndim != 3 or tensor.shape[0] != 1 or tensor.shape[2] != own.shape[2]:
        return None
    side = math.isqrt(max(0, tensor.shape[1] - prefix))
    if not side or side**2 != tensor.shape[1] - prefix:
        return None
    from timm.layers import resample_abs_pos_embed

    new_size = list(backbone.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
    resampled: Tensor = resample_abs_pos_embed(tensor, new_size, [side, side], num_prefix_tokens=prefix)
    return resampled


def fix_position_embedding(backbone: VisionTransformer) -> None:
    """Replace the learned positions of the backbone by `sincos_position_embedding`, and train them no longer."""
    if backbone.pos_embed is None:
        raise UserError(f"the backbone adds no position embedding that could be fixed; choose {SUITABLE}")
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    rows, columns = backbone.patch_embed.grid_size
    fixed = sincos_position_embedding(backbone.embed_dim, rows, columns, prefix)
    with torch.no_grad():
        backbone.pos_embed.copy_(fixed)
    backbone.pos_embed.requires_grad_(False)


def disable_drop_path(network: nn.Module) -> nn.Module:
    """Switch drop path off in place, in training mode too, and return the network: for teachers that see all blocks."""
    for module in _drop_paths(network):
        module.drop_prob = 0.0  # type: ignore[assignment]
    return network


def has_drop_path(network: nn.Module) -> bool:
    """Return True if images skip some of the network's blocks in training."""
    return any(module.drop_prob for module in _drop_paths(network))


def _drop_paths(network: nn.Module) -> list[nn.Module]:
    """All layers of timm's class DropPath, found by name, which spares other networks the import."""
    return [module for module in network.modules() if type(module).__name__ == "DropPath"]


def _positions(backbone: VisionTransformer, grid: tuple[int, int]) -> Tensor | None:
    """Position embeddings (1, T, D) of a grid of patches, interpolated where the backbone was built for another."""
    if backbone.pos_embed is None:
        return None
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    own: Tensor = backbone.pos_embed[:, prefix:]
    if grid == tuple(backbone.patch_embed.grid_size):
        return own
    from timm.layers import resample_abs_pos_embed

    resampled: Tensor = resample_abs_pos_embed(
        own, new_size=list(grid), old_size=list(backbone.patch_embed.grid_size), num_prefix_tokens=0
    )
    return resampled
