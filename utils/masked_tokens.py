"""What methods that hide patches of an image share: patches as pixels, a transformer that predicts hidden tokens."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.arg_types import positive_int
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.vision_transformer import (
    fix_position_embedding,
    require_vision_transformer,
    sincos_position_embedding,
)

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

FIXED_POSITIONS = (
    "the position embedding of the backbone is fixed (sine and cosine), also where its weights were loaded"
)
MASKS = 2  # stream of random numbers in an address; 0 and 1 are the order of an epoch and the views


def prepare_backbone(backbone: nn.Module, method_name: str) -> tuple[int, int]:
    """Fix the position embedding of a vision transformer and return its (rows, columns) of patches of a view.

    UserError if the backbone is no vision transformer, or if it pools by attention: the pooling would get no gradient
    from losses of tokens.
    """
    network = require_vision_transformer(backbone, method_name)
    if network.attn_pool is not None:
        raise UserError(
            f"{method_name} trains tokens, and the backbone pools them by an attention layer that would stay random; "
            f"add --pool avg"
        )
    fix_position_embedding(network)
    rows, columns = network.patch_embed.grid_size
    return int(rows), int(columns)


def normalize_tokens(backbone: VisionTransformer, tokens: Tensor) -> Tensor:
    """Apply the final norm of an average-pooled network, which pools before it, to each token of `run_blocks`.

    Tokens are then normalized whatever the pooling, and no parameter of the backbone is without a gradient.
    """
    out: Tensor = backbone.fc_norm(tokens)
    return out


def patchify(images: Tensor, size: int) -> Tensor:
    """Cut images (N, C, H, W) into patches of size x size pixels: (N, T, size * size * C), row by row.

    Within a patch the pixels run row by row, and the C channels of a pixel are neighbours.
    """
    n, c, height, width = images.shape
    tiles = images.reshape(n, c, height // size, size, width // size, size)  # (N, C, rows, size, columns, size)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, size * size * c)


class TokenPredictor(nn.Module):
    """A transformer that predicts tokens at hidden places of a grid: the decoder of MAE, the predictor of I-JEPA.

    Known tokens are projected to the transformer's width. Each hidden place is a learned mask token. Both get fixed
    sine-cosine positions, and the outputs at the mask tokens are projected to the wanted width.

    dim: width of the known tokens. width, layers, heads: of the transformer. out: width of the output. grid: rows and
    columns. init_weight: initializes the weight of a linear layer in place; biases start at zero.
    """

    positions: Tensor

    def __init__(
        self, dim: int, width: int, layers: int, heads: int, out: int, grid: tuple[int, int],
        init_weight: Callable[[Tensor], Any],
    ):  # fmt: skip
        super().__init__()
        from timm.models.vision_transformer import Block

        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("positions", sincos_position_embedding(width, *grid)[0], persistent=False)  # (T, width)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_weight(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """Predict the tokens at hidden places: (N, S, M, out).

        tokens: (N, P + K, dim), first P tokens without a place, as a class token. places: (N, K) int64, places of the
        others. hidden: (N, S, M) int64; each of the S sets of places is a sequence of its own.
        """
        n, sets, m = hidden.shape
        prefix = tokens.shape[1] - places.shape[1]
        positions = nn.functional.pad(self.positions[places], (0, 0, prefix, 0))  # (N, P + K, width)
        known = (self.embed(tokens) + positions)[:, None].expand(-1, sets, -1, -1)
        sequence = torch.cat([known, self.mask_token + self.positions[hidden]], dim=2)  # (N, S, P + K + M, width)
        predicted = self.blocks(sequence.flatten(0, 1))[:, -m:]
        out: Tensor = self.head(self.norm(predicted)).unflatten(0, (n, sets))
        return out


def add_token_predictor_flags(parser: FlagGroup, name: str, dim: int, layers: int, heads: int, source: str) -> None:
    """Add the flags that size a `TokenPredictor`, called after it, with a paper's defaults. source: where they are."""
    parser.add_argument(f"--{name}_dim", type=positive_int, default=dim, help=f"width of the {name} ({source})")
    parser.add_argument(
        f"--{name}_layers", type=positive_int, default=layers, help=f"transformer blocks of the {name} ({source})"
    )
    parser.add_argument(
        f"--{name}_heads", type=positive_int, default=heads, help=f"attention heads of the {name} ({source})"
    )


def token_predictor(
    args: Namespace, name: str, dim: int, out: int, grid: tuple[int, int], init_weight: Callable[[Tensor], Any]
) -> TokenPredictor:
    """Build the `TokenPredictor` that the flags of this name describe; the other arguments as there."""
    width, layers, heads = (getattr(args, f"{name}_{part}") for part in ("dim", "layers", "heads"))
    if width % 4 or width % heads:
        raise UserError(
            f"--{name}_dim {width} is not a multiple of 4 and of --{name}_heads {heads}; change one of the two"
        )
    return TokenPredictor(dim, width, layers, heads, out, grid, init_weight)
