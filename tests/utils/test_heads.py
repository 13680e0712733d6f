"""Projectors and predictors: depth, widths, norms and biases follow the flags."""

import pytest
import torch
from torch import nn

from tests.helpers.commands import plan_of
from utils.heads import Prototypes, mlp, predictor, projector


def widths(network):
    linear = [m for m in network if isinstance(m, nn.Linear)]
    return [linear[0].in_features, *(m.out_features for m in linear)]


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_projector_and_predictor_have_the_depth_and_width_of_the_flags(layers):
    args, _ = plan_of("nnclr")
    args.proj_layers = args.pred_layers = layers  # the command line refuses the width that one layer does not have
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


def test_mlp_without_norms_has_biases_and_the_activation():
    network = mlp(6, 5, 5, 4, last_norm=False, norm=False, activation=nn.GELU, last_bias=False)
    assert [type(m) for m in network] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert [m.bias is not None for m in network if isinstance(m, nn.Linear)] == [True, True, False]


def test_prototypes_give_cosines_whatever_the_length_of_their_rows():
    torch.manual_seed(0)
    scores, z = Prototypes(4, 3), torch.randn(5, 4)
    expected = torch.cosine_similarity(z[:, None], scores.weight[None], dim=2)
    torch.testing.assert_close(scores(z / z.norm(dim=1, keepdim=True)), expected)
    with torch.no_grad():
        before = scores(z)
        scores.weight.mul_(7)
    torch.testing.assert_close(scores(z), before)


def test_prototypes_compute_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert Prototypes(4, 3)(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float32
