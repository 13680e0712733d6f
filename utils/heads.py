"""Projectors and predictors on top of the backbone, and the flags that size them, with the same names everywhere."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.arg_types import Rule, positive_int
from utils.optim import FlagGroup
from utils.precision import at_least_float32, full_precision, l2_normalize


def rectifier() -> nn.Module:
    """A ReLU that works in place."""
    return nn.ReLU(inplace=True)


def mlp(
    *widths: int,
    last_norm: bool,
    last_affine: bool = True,
    last_bias: bool = True,
    norm: bool = True,
    activation: Callable[[], nn.Module] = rectifier,
) -> nn.Sequential:
    """A multi-layer perceptron of the given widths: Linear, BatchNorm1d, ReLU for each layer but the last.

    The last layer has no activation. With last_norm it ends in a batch norm, which has a scale and shift if
    last_affine; otherwise it is a plain linear layer, with a bias if last_bias. Linear layers before a norm have no
    bias, because the norm would subtract it again. norm: whether the layers but the last have one.
    """
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i == len(widths) - 2
        normed = last_norm if last else norm
        layers.append(nn.Linear(d_in, d_out, bias=not normed and (last_bias or not last)))
        layers += [nn.BatchNorm1d(d_out, affine=last_affine or not last)] * normed + [activation()] * (not last)
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """Scores of embeddings by prototypes of unit length: (N, dim) -> (N, count).

    The rows of `weight` are normalized in each forward pass: a weight norm whose gain stays 1. The scores of
    unit embeddings are cosines.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    @full_precision
    def forward(self, z: Tensor) -> Tensor:
        z = at_least_float32(z)
        return z @ l2_normalize(self.weight).to(z.dtype).T


def add_projector_flags(parser: FlagGroup, hidden: int, dim: int, layers: int, source: str) -> None:
    """Add --hidden_mlp, --proj_dim and --proj_layers with a paper's defaults. source: the section that states them."""
    parser.add_argument(
        "--hidden_mlp", type=positive_int, default=hidden, help=f"hidden width of the projector ({source})"
    )
    parser.add_argument("--proj_dim", type=positive_int, default=dim, help=f"width of the embedding ({source})")
    parser.add_argument("--proj_layers", type=positive_int, default=layers, help=f"layers of the projector ({source})")


def add_predictor_flags(parser: FlagGroup, hidden: int, source: str) -> None:
    """Add --pred_hidden_mlp and --pred_layers; input and output of a predictor are as wide as the embedding."""
    parser.add_argument(
        "--pred_hidden_mlp", type=positive_int, default=hidden, help=f"hidden width of the predictor ({source})"
    )
    parser.add_argument("--pred_layers", type=positive_int, default=2, help=f"layers of the predictor ({source})")


HEAD_RULES: tuple[Rule, ...] = (  # flags of heads that have no effect without something else
    (("pred_hidden_mlp", "pred_layers"), "a predictor", lambda a: getattr(a, "predictor", True)),
    (("pred_hidden_mlp",), "a predictor of several layers", lambda a: getattr(a, "pred_layers", 2) > 1),
    (("hidden_mlp", "head_norm"), "a projector of several layers", lambda a: getattr(a, "proj_layers", 2) > 1),
)


def projector(args: Namespace, dim: int, last_norm: bool, **options: Any) -> nn.Sequential:
    """Build the projector that the flags describe, for features of width dim; options as in `mlp`."""
    widths = (dim, *[args.hidden_mlp] * (args.proj_layers - 1), args.proj_dim)
    return mlp(*widths, last_norm=last_norm, **options)


def predictor(args: Namespace, last_norm: bool = False, **options: Any) -> nn.Sequential:
    """Build the predictor that the flags describe; options as in `mlp`."""
    widths = (args.proj_dim, *[args.pred_hidden_mlp] * (args.pred_layers - 1), args.proj_dim)
    return mlp(*widths, last_norm=last_norm, **options)
