"""Projectors and predictors: depth, widths, norms and biases follow the flags."""

import pytest
import torch
from torch import nn

from tests.helpers.commands import plan_of
from utils.heads import mlp, predictor, projector


def widths(network):
    linear = [m for m in network if isinstance(m, nn.Linear)]
    return [linear[0].in_features, *(m.out_features for m in linear)]


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_projector_and_predictor_have_the_depth_and_width_of_the_flags(layers):
    args, _ = plan_of("nnclr", "--proj_layers", str(layers), "--pred_layers", str(layers))
    assert widths(projector(args, 6, last_norm=True)) == [6, *[16] * (layers - 1), 8]
    assert widths(predictor(args)) == [8, *[16] * (layers - 1), 8]


@pytest.mark.parametrize(("norm", "affine", "bias"), [(True, True, True), (True, False, True), (False, True, False)])
def test_mlp_last_layer(norm, affine, bias):
    network = mlp(6, 5, 4, last_norm=norm, last_affine=affine, last_bias=bias)
    norms = [m for m in network if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 1 + norm
    assert norms[0].affine
    assert not norm or norms[-1].affine == affine
    linear = [m for m in network if isinstance(m, nn.Linear)]
    assert linear[0].bias is None
    assert (linear[-1].bias is not None) == (not norm and bias)
    assert sum(isinstance(m, nn.ReLU) for m in network) == 1
    assert network(torch.randn(3, 6)).shape == (3, 4)
