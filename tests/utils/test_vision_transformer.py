"""Token access: the steps together are the backbone itself; masks, subsets and fixed positions do what they say."""

import copy
import math

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from tests.helpers.pretended_cuda import CUDA, on_host, pretended_cuda
from utils.ema import EMA
from utils.errors import UserError
from utils.vision_transformer import (
    class_token_attention,
    disable_drop_path,
    embed_patches,
    fix_position_embedding,
    has_class_attention,
    has_drop_path,
    patch_grid,
    patch_size,
    pool_tokens,
    prefix_tokens,
    require_vision_transformer,
    run_blocks,
    run_last_blocks,
    sincos_position_embedding,
    take_tokens,
    with_prefix,
)


def build(name="test_vit", **options):
    """A vision transformer whose parameters are all random, also those that timm starts near zero."""
    torch.manual_seed(0)
    options = {"img_size": 32, "depth": 2} | options
    network = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return require_vision_transformer(network, "the test")


def images(size, n=2, width=None):
    return torch.randn(n, 3, size, width or size, generator=torch.Generator().manual_seed(1))


def composed(network, x):
    return pool_tokens(network, run_blocks(network, with_prefix(network, embed_patches(network, x))))


KINDS = {
    "class token": {},
    "average": {"global_pool": "avg"},
    "registers": {"reg_tokens": 3},
    "registers, average": {"reg_tokens": 3, "global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "positions of patches only": {"no_embed_class": True, "reg_tokens": 2},
    "no positions": {"pos_embed": "none"},
    "norm before the blocks": {"pre_norm": True},
    "attention pooling": {"global_pool": "map"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_steps_together_are_the_backbone(kind, dynamic):
    network = build(dynamic_img_size=dynamic, **KINDS[kind])
    for size in (32, 64) if dynamic else (32,):
        x = images(size)
        assert torch.equal(composed(network, x), network(x)), size


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("size", [32, 48, 96])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_steps_together_are_vit_tiny(name, size, pool):
    network = build(name, img_size=size, dynamic_img_size=True, global_pool=pool)
    for side in (size, 64):
        x = images(side)
        assert torch.equal(composed(network, x), network(x)), side


def test_images_need_not_be_square():
    network = build(dynamic_img_size=True)
    x = images(32, width=80)
    assert patch_grid(network, x) == (2, 5)
    assert torch.equal(composed(network, x), network(x))


def test_gradients_are_those_of_the_backbone():
    network, x = build(reg_tokens=1), images(32)
    grads = [torch.autograd.grad(f(x).square().sum(), list(network.parameters())) for f in
             (network, lambda x: composed(network, x))]  # fmt: skip
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_distilled_patch16_224", "convnext_atto"])
def test_other_networks_are_refused(name):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    with pytest.raises(UserError, match="MAE works on .* is a .* choose .*vit_small_patch16_224"):
        require_vision_transformer(network, "MAE")


@pytest.mark.parametrize("dynamic", [False, True])
def test_mask_token_replaces_embeddings_before_positions(dynamic):
    network, x = build(dynamic_img_size=dynamic, img_size=48), images(48)
    token = torch.randn(network.embed_dim)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 4] = mask[1, :] = True
    plain, masked = embed_patches(network, x), embed_patches(network, x, mask, token)
    positions = network.pos_embed[0, 1:]
    for n in range(2):
        for t in range(9):
            expected = token + positions[t] if mask[n, t] else plain[n, t]
            torch.testing.assert_close(masked[n, t], expected, rtol=0, atol=0)
    none = embed_patches(network, x, torch.zeros_like(mask), token)
    assert torch.equal(none, plain)


def test_subset_of_tokens_keeps_its_positions():
    """Blocks treat tokens as a set: all tokens in another order give the same class token."""
    network, x = build(img_size=64), images(64)
    patches = embed_patches(network, x)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    shuffled = take_tokens(patches, order)
    assert torch.equal(shuffled[1, 3], patches[1, order[1, 3]])
    features = pool_tokens(network, run_blocks(network, with_prefix(network, shuffled)))
    torch.testing.assert_close(features, network(x))
    fewer = pool_tokens(network, run_blocks(network, with_prefix(network, shuffled[:, :4])))
    assert fewer.shape == (2, 64)
    assert (fewer - features).abs().max() > 1e-3


def test_patch_token_comes_from_its_patch():
    network, x = build(img_size=64), images(64)
    patches, grid = embed_patches(network, x), patch_grid(network, x)
    assert grid == (4, 4)
    assert patch_size(network) == 16
    changed = x.clone()
    changed[:, :, 32:48, 16:32] += 1  # row 2, column 1
    different = (embed_patches(network, changed) != patches).any(dim=-1)
    assert different.nonzero()[:, 1].unique().tolist() == [2 * grid[1] + 1]


def test_network_without_prefix_tokens():
    network = build(class_token=False, global_pool="avg")
    assert prefix_tokens(network, 3).shape == (3, 0, 64)


def test_one_compiled_graph():
    """No step leaves the graph, as one would that looks at the values of a tensor."""
    network, x = build(dynamic_img_size=True), images(64)
    compiled = torch.compile(lambda x: composed(network, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))


def test_autocast_gives_the_features_of_the_backbone():
    network, x = build(), images(32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, own = composed(network, x), network(x)
    assert torch.equal(mine, own)


def test_sincos_positions_against_loops():
    dim, rows, columns = 12, 2, 3
    table = sincos_position_embedding(dim, rows, columns, prefix=2)
    assert table.shape == (1, 8, dim)
    assert table.dtype == torch.float32
    assert not table[0, :2].any()
    for r in range(rows):
        for c in range(columns):
            at = table[0, 2 + r * columns + c]
            for i in range(dim // 4):
                w = 1 / 10000 ** (i / (dim / 4))
                expected = [math.sin(c * w), math.cos(c * w), math.sin(r * w), math.cos(r * w)]
                torch.testing.assert_close(at[i :: dim // 4], torch.tensor(expected))


def test_sincos_positions_need_a_multiple_of_four():
    with pytest.raises(UserError, match="multiple of 4, got 66"):
        sincos_position_embedding(66, 2, 2)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"no_embed_class": True}])
def test_fixed_positions_are_in_the_backbone_and_not_trained(options):
    network, x = build(img_size=48, **options), images(48)
    before = network(x)
    fix_position_embedding(network)
    assert not network.pos_embed.requires_grad
    torch.testing.assert_close(network.pos_embed[:, -9:], sincos_position_embedding(64, 3, 3))
    assert not torch.equal(network(x), before)
    assert torch.equal(composed(network, x), network(x))


def test_teacher_that_is_a_moving_average_sees_all_blocks():
    network = build(drop_path_rate=0.9, depth=4)
    teacher = EMA(nn.Sequential(network), 0.9).teacher
    assert not has_drop_path(teacher)
    assert has_drop_path(network)


def test_drop_path_is_off_in_training_mode_too():
    network, x = build(drop_path_rate=0.9, depth=4).train(), images(32)
    assert not torch.equal(network(x), network(x))
    assert disable_drop_path(network) is network
    assert torch.equal(network(x), network.eval()(x))
    assert disable_drop_path(nn.Linear(2, 2)).in_features == 2


@pytest.mark.parametrize(("options", "shape"), [({}, (2, 2)), ({"reg_tokens": 3, "qk_norm": True}, (4, 3))])
def test_class_token_attention_is_the_blocks_own(options, shape):
    """timm's own matrix, which it computes where its attention is not fused; there it goes through attn_drop."""
    network = build(dynamic_img_size=True, **options)
    x, seen = images(16 * shape[0], width=16 * shape[1]), []
    maps = class_token_attention(network, x)
    attn = network.blocks[-1].attn
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    network(x)
    own = seen[0][:, :, 0, network.num_prefix_tokens :]
    assert maps.shape == (2, 2, *shape)
    torch.testing.assert_close(maps.flatten(2), own)
    prefix = seen[0][:, :, 0, : network.num_prefix_tokens].sum(dim=-1)
    torch.testing.assert_close(maps.sum(dim=(2, 3)) + prefix, torch.ones(2, 2))


def test_class_attention_is_only_that_of_networks_with_a_class_token_as_features():
    assert has_class_attention(build())
    for other in ({"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "map"},
                  {"block_fn": ParallelScalingBlock}):  # fmt: skip
        assert not has_class_attention(build(**other)), other
    assert not has_class_attention(timm.create_model("test_resnet"))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_last_blocks_end_with_the_output_of_all_blocks(pre_norm):
    network, x = build(depth=4, pre_norm=pre_norm), images(32)
    tokens = with_prefix(network, embed_patches(network, x))
    outputs = run_last_blocks(network, tokens, 3)
    assert len(outputs) == 3
    torch.testing.assert_close(outputs[-1], run_blocks(network, tokens))
    network.blocks = network.blocks[:2]
    torch.testing.assert_close(outputs[0], run_blocks(network, tokens))


def masked_features(network, x, token):
    """Features from every step: masked patches, a part of them, interpolated positions, and two blocks."""
    mask = torch.arange(16, device=x.device) % 3 == 0
    patches = embed_patches(network, x, mask.expand(len(x), -1), token)
    kept = take_tokens(patches, torch.arange(16, device=x.device).flip(0)[None, :9].expand(len(x), -1))
    last = run_last_blocks(network, with_prefix(network, kept), 2)
    return torch.cat([pool_tokens(network, out) for out in last], dim=1)


def test_no_step_waits_for_a_gpu():
    """On the pretended CUDA device: no wait and the features of the CPU, of views in channels-last memory too."""
    network, token = build(dynamic_img_size=True, reg_tokens=1), torch.randn(64)
    x = images(64).contiguous(memory_format=torch.channels_last)
    expected = masked_features(network, x, token)
    with pretended_cuda() as device:
        moved = copy.deepcopy(network).to(CUDA), x.to(CUDA), token.to(CUDA)
        device.waits.clear()  # of these copies
        features = masked_features(*moved)
        assert not device.waits
        torch.testing.assert_close(on_host(features), expected)
    torch.testing.assert_close(masked_features(network, x.contiguous(), token), expected)
