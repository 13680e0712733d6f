"""Small networks on top of the backbone."""

from torch import nn


def mlp(*widths: int, last_norm: bool) -> nn.Sequential:
    """Linear -> BatchNorm -> ReLU from width to width.

    The last layer has no ReLU, and is a plain linear layer unless `last_norm`. A layer before a norm has no bias,
    which the norm would take away again.
    """
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i == len(widths) - 2
        norm = last_norm or not last
        layers.append(nn.Linear(d_in, d_out, bias=not norm))
        layers += [nn.BatchNorm1d(d_out)] * norm + [nn.ReLU(inplace=True)] * (not last)
    return nn.Sequential(*layers)
