"""Patches as pixels, and the transformer that predicts hidden tokens, against lightly and against its equation."""

import sys
from argparse import ArgumentParser

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.helpers.networks import Flat
from tests.helpers.transformers import tiny_transformer
from utils.errors import UserError
from utils.masked_tokens import (
    TokenPredictor,
    add_token_predictor_flags,
    normalize_tokens,
    patchify,
    prepare_backbone,
    token_predictor,
)
from utils.vision_transformer import pool_tokens, sincos_position_embedding

GRID = (3, 4)


def predictor(out=5):
    """In float64, with random biases, norms and mask token."""
    torch.manual_seed(0)
    network = TokenPredictor(6, 8, 2, 2, out, GRID, nn.init.xavier_uniform_).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def tokens(n, k, prefix=1, seed=0):
    return torch.randn(n, prefix + k, 6, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def test_patchify_is_row_by_row_with_neighbouring_channels():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            square = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]  # (N, C, 2, 2)
            assert torch.equal(patches[:, 3 * row + column], square.permute(0, 2, 3, 1).flatten(1))


@pytest.fixture(scope="module")
def lightly():
    """The package, imported before a test begins: it changes the environment."""
    for module in ("lightly.models.utils", "lightly.models.modules"):
        pytest.importorskip(module, reason="compares with lightly")
    return sys.modules["lightly"]


def test_patchify_agrees_with_lightly(lightly):
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(patchify(images, 4), lightly.models.utils.patchify(images, 4))


def test_predictor_agrees_with_a_decoder_that_keeps_the_order_of_the_grid():
    """All tokens at their places of the grid, as in the official code of MAE; a transformer ignores their order."""
    network, known = predictor(), tokens(2, 5)
    order = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    visible, hidden = order.split([5, 7], dim=1)
    found = network(known, visible, hidden[:, None])
    for i in range(2):
        grid = network.mask_token[0].expand(12, -1).clone()
        grid[visible[i]] = network.embed(known[i, 1:])
        sequence = torch.cat([network.embed(known[i, :1]), grid])
        sequence = sequence + sincos_position_embedding(8, *GRID, prefix=1)[0].double()
        out = network.head(network.norm(network.blocks(sequence[None])))[0, 1:]
        assert_close(found[i, 0], out[hidden[i]], rtol=0, atol=1e-12)


def test_predictor_agrees_with_lightly(lightly):
    """Output and gradient of I-JEPA's predictor, for context and two target blocks."""
    torch.manual_seed(0)
    mine = TokenPredictor(6, 8, 2, 2, 6, (4, 4), nn.init.xavier_uniform_).double()
    theirs = lightly.models.modules.IJEPAPredictorTIMM(16, 2, 6, 8, 2).double()
    theirs.decoder.blocks.load_state_dict(mine.blocks.state_dict())
    theirs.decoder.norm.load_state_dict(mine.norm.state_dict())
    theirs.decoder.mask_token.data.copy_(mine.mask_token)
    theirs.predictor_embed.load_state_dict(mine.embed.state_dict())
    theirs.predictor_proj.load_state_dict(mine.head.state_dict())
    assert_close(mine.positions, theirs.decoder.pos_embed[0], rtol=0, atol=1e-6)
    places, hidden = torch.tensor([[0, 1, 2], [8, 3, 5]]), torch.tensor([[[4, 6], [7, 9]], [[11, 12], [13, 4]]])
    x = tokens(2, 3, prefix=0).requires_grad_()
    out = mine(x, places, hidden)  # (N, S, M, D)
    out.square().sum().backward()
    gradient, x.grad = x.grad, None
    expected = theirs(x, places, list(hidden.unbind(dim=1))).unflatten(0, (2, 2)).transpose(0, 1)  # blocks come first
    expected.square().sum().backward()
    assert_close(out, expected, rtol=0, atol=1e-6)
    assert_close(gradient, x.grad, rtol=1e-6, atol=1e-6)


def test_sets_of_hidden_places_do_not_see_each_other():
    network, known, places = predictor(), tokens(2, 3), torch.tensor([[0, 1, 2], [8, 3, 5]])
    hidden = torch.tensor([[[4, 6], [7, 9]], [[11, 2], [3, 4]]])
    both = network(known, places, hidden)
    for s in range(2):
        assert_close(both[:, s], network(known, places, hidden[:, s : s + 1])[:, 0], rtol=0, atol=1e-12)
    assert both.shape == (2, 2, 2, 5)


def test_positions_are_neither_trained_nor_saved():
    network = predictor()
    assert "positions" not in network.state_dict()
    assert not network.positions.requires_grad


def build(*words):
    parser = ArgumentParser()
    add_token_predictor_flags(parser, "decoder", dim=8, layers=2, heads=2, source="sec. 1")
    return token_predictor(parser.parse_args(words), "decoder", 6, 5, GRID, nn.init.zeros_)


def test_flags_size_the_predictor():
    network = build("--decoder_dim", "16", "--decoder_layers", "3", "--decoder_heads", "4")
    assert (network.embed.out_features, len(network.blocks), network.blocks[0].attn.num_heads) == (16, 3, 4)
    assert (network.embed.in_features, network.head.out_features) == (6, 5)
    assert network.head.weight.abs().sum() == 0, "initialized as asked"


@pytest.mark.parametrize("words", [("--decoder_dim", "12", "--decoder_heads", "5"), ("--decoder_dim", "6")])
def test_width_that_heads_or_positions_do_not_divide_is_an_error(words):
    with pytest.raises(UserError, match=f"--decoder_dim {words[1]} .* 4 .*--decoder_heads"):
        build(*words)


def test_prepared_backbone_has_fixed_positions():
    network = tiny_transformer()
    assert prepare_backbone(network, "the test") == (4, 4)
    assert torch.equal(network.pos_embed, sincos_position_embedding(12, 4, 4, prefix=1))
    assert not network.pos_embed.requires_grad


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: Flat(12), "the test .* vision transformer"),
        (lambda: tiny_transformer(global_pool="map"), "attention .* --pool avg"),
    ],
)
def test_unsuitable_backbone_is_an_error(network, message):
    with pytest.raises(UserError, match=message):
        prepare_backbone(network(), "the test")


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_normalized_tokens_leave_no_parameter_without_gradient(pool):
    network = tiny_transformer(global_pool=pool)
    x = torch.randn(2, 5, 12)
    normal = normalize_tokens(network, network.norm(network.blocks(x)))
    assert_close(normal.mean(dim=-1), torch.zeros(2, 5), rtol=0, atol=1e-6)
    pool_tokens(network, normal).sum().backward()
    assert network.norm_pre is not None
    for name, p in network.named_parameters():
        assert p.grad is not None or name.startswith(("cls", "pos", "patch")), name
