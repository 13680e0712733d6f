"""Projectors and predictors on top of the backbone, and the flags that size them, with the same names everywhere."""

from argparse import Namespace

from torch import nn

from utils.arg_types import positive_int
from utils.optim import FlagGroup

PREDICTOR_FLAGS = ("pred_hidden_mlp", "pred_layers")


def mlp(*widths: int, last_norm: bool, last_affine: bool = True, last_bias: bool = True) -> nn.Sequential:
    """A multi-layer perceptron of the given widths: Linear, BatchNorm1d, ReLU for each layer but the last.

    The last layer has no ReLU. With last_norm it ends in a batch norm, which has a scale and shift if last_affine;
    otherwise it is a plain linear layer, with a bias if last_bias. Linear layers before a norm have no bias, because
    the norm would subtract it again.
    """
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i == len(widths) - 2
        norm = last_norm or not last
        layers.append(nn.Linear(d_in, d_out, bias=not norm and last_bias))
        layers += [nn.BatchNorm1d(d_out, affine=last_affine or not last)] * norm + [nn.ReLU(inplace=True)] * (not last)
    return nn.Sequential(*layers)


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


def has_predictor(args: Namespace) -> bool:
    """Whether the flags leave the method its predictor; the flags of PREDICTOR_FLAGS have no effect otherwise."""
    return bool(getattr(args, "predictor", True))


def projector(
    args: Namespace, dim: int, last_norm: bool, last_affine: bool = True, last_bias: bool = True
) -> nn.Sequential:
    """Build the projector that the flags describe, for features of width dim; last_* as in `mlp`."""
    widths = (dim, *[args.hidden_mlp] * (args.proj_layers - 1), args.proj_dim)
    return mlp(*widths, last_norm=last_norm, last_affine=last_affine, last_bias=last_bias)


def predictor(args: Namespace) -> nn.Sequential:
    """Build the predictor that the flags describe; its last layer is a plain linear layer."""
    return mlp(args.proj_dim, *[args.pred_hidden_mlp] * (args.pred_layers - 1), args.proj_dim, last_norm=False)
