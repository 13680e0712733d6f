"""Small networks on top of the backbone, and the flags that size them: the same names for every method."""

from argparse import Namespace
from typing import Any

from torch import nn

from utils.arg_types import positive_int


def mlp(*widths: int, last_norm: bool, last_affine: bool = True, last_bias: bool = True) -> nn.Sequential:
    """Linear -> BatchNorm -> ReLU from width to width.

    The last layer has no ReLU, and is a plain linear layer (without a bias unless `last_bias`) unless `last_norm`
    puts a batch norm behind it, with weights of its own if `last_affine`. A layer before a norm has no bias, which the
    norm would take away again.
    """
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i == len(widths) - 2
        norm = last_norm or not last
        layers.append(nn.Linear(d_in, d_out, bias=not norm and last_bias))
        layers += [nn.BatchNorm1d(d_out, affine=last_affine or not last)] * norm + [nn.ReLU(inplace=True)] * (not last)
    return nn.Sequential(*layers)


def add_projector_flags(parser: Any, hidden: int, dim: int, layers: int, source: str) -> None:
    """--hidden_mlp, --proj_dim and --proj_layers with a paper's defaults; `source` is where it states them."""
    parser.add_argument("--hidden_mlp", type=positive_int, default=hidden, help=f"hidden width, projector ({source})")
    parser.add_argument("--proj_dim", type=positive_int, default=dim, help=f"width of the embedding ({source})")
    parser.add_argument("--proj_layers", type=positive_int, default=layers, help=f"depth of the projector ({source})")


def add_predictor_flags(parser: Any, hidden: int, source: str) -> None:
    """--pred_hidden_mlp and --pred_layers; the predictor is as wide at both ends as the embedding."""
    parser.add_argument(
        "--pred_hidden_mlp", type=positive_int, default=hidden, help=f"hidden width, predictor ({source})"
    )
    parser.add_argument("--pred_layers", type=positive_int, default=2, help=f"depth of the predictor ({source})")


def projector(args: Namespace, dim: int, **last: bool) -> nn.Sequential:
    """The projector that the flags describe, from `dim` features; `last` as in `mlp`."""
    return mlp(dim, *[args.hidden_mlp] * (args.proj_layers - 1), args.proj_dim, **last)


def predictor(args: Namespace) -> nn.Sequential:
    """The predictor that the flags describe; its last layer is plain."""
    return mlp(args.proj_dim, *[args.pred_hidden_mlp] * (args.pred_layers - 1), args.proj_dim, last_norm=False)
