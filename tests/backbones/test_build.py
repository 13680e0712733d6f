"""Backbones by name: widths, stems, initialization and intermediate features."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from backbones.build import (
    TORCHVISION,
    IntermediateFeatures,
    LastBlocks,
    at_layer,
    block_names,
    build_backbone,
    choose_stem,
    part_name,
)
from utils.errors import UserError
from utils.plan import BackboneConfig


def build(name, size, small_size=None, stem="imagenet", **options):
    config = BackboneConfig(name, stem, **options)
    return build_backbone(config, size, small_size)


@pytest.mark.parametrize(("name", "size", "dim"), [("resnet18", 32, 512), ("resnet50", 32, 2048), ("test_vit", 32, 64)])
def test_build_backbone_returns_the_width_of_its_features(name, size, dim):
    network, width = build(name, size)
    assert width == dim
    assert network.training
    assert network.eval()(torch.zeros(2, 3, size, size)).shape == (2, dim)


def test_build_backbone_with_the_small_stem_keeps_the_resolution():
    small, dim = build("resnet18", 32, stem="small")
    assert dim == 512
    assert small.conv1.kernel_size == (3, 3)
    assert small.layer1(small.maxpool(small.conv1(torch.zeros(1, 3, 32, 32)))).shape[-1] == 32


def test_build_backbone_keeps_the_tensor_names_of_its_library():
    """Everything but the classifier, in the order of the library."""
    from_torchvision, _ = build("resnet18", 64)
    reference = torchvision.models.resnet18(weights=None).state_dict()
    assert list(from_torchvision.state_dict()) == [k for k in reference if not k.startswith("fc.")]
    from_timm, _ = build("test_resnet", 64)
    assert list(from_timm.state_dict()) == list(timm.create_model("test_resnet", num_classes=0).state_dict())


def test_build_backbone_suggests_names_near_to_an_unknown_one():
    with pytest.raises(UserError, match=r"unknown backbone 'resnet81' \(did you mean .*resnet18"):
        build("resnet81", 32)


def test_build_backbone_refuses_impossible_combinations():
    with pytest.raises(UserError, match="--stem small .* test_vit does not have"):
        build("test_vit", 32, stem="small")
    with pytest.raises(UserError, match="dla46_c .* views of 8 pixels .*--large_size"):
        build("dla46_c", 8)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_resnet"])
def test_build_backbone_accepts_two_sizes_of_views(name):
    network, dim = build(name, 64, 32)
    plain, _ = build(name, 64)
    assert network.state_dict().keys() == plain.state_dict().keys(), "the weights fit the ordinary network"
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == network(torch.zeros(2, 3, 64, 64)).shape == (2, dim)


def test_build_backbone_refuses_small_views_that_the_network_cannot_process():
    with pytest.raises(UserError, match="test_vit .* views of 20 pixels .*--small_size"):
        build("test_vit", 64, 20)


@pytest.mark.parametrize("name", TORCHVISION)
def test_zero_init_residual_zeroes_the_norms_that_torchvision_zeroes(name):
    """Convolutions are not drawn here, which saves most of the time; the next test compares them too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "kaiming_normal_", lambda tensor, **how: tensor)
        patch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **how: tensor)
        reference = torchvision.models.get_model(name, weights=None, zero_init_residual=True).state_dict()
        network, _ = build(name, 32, zero_init_residual=True)
    norms = {k: v for k, v in network.state_dict().items() if v.ndim == 1}
    assert any(k.endswith(".weight") and not v.any() for k, v in norms.items())
    assert all(torch.equal(v, reference[k]) for k, v in norms.items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_residual_draws_no_random_numbers(name):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None, zero_init_residual=True).state_dict()
    torch.manual_seed(0)
    network, _ = build(name, 32, zero_init_residual=True)
    state = torch.get_rng_state()
    assert all(torch.equal(v, reference[k]) for k, v in network.state_dict().items())
    torch.manual_seed(0)
    build(name, 32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["resnet26d", "test_resnet", "resnetv2_50", "regnetx_002"])
def test_zero_init_residual_of_timm_networks_is_timms_own(name):
    torch.manual_seed(0)
    reference = timm.create_model(name, num_classes=0, zero_init_last=True).state_dict()
    torch.manual_seed(0)
    network, _ = build(name, 32, zero_init_residual=True)
    assert all(torch.equal(v, reference[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", ["resnet26d", "resnetv2_50", "test_vit", "convnext_atto"])
def test_without_zero_init_residual_timm_networks_keep_their_initialization(name):
    torch.manual_seed(0)
    reference = timm.create_model(name, num_classes=0, **({"img_size": 32} if "vit" in name else {})).state_dict()
    torch.manual_seed(0)
    network, _ = build(name, 32)
    assert all(torch.equal(v, reference[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", ["test_vit", "convnext_atto", "mobilenetv3_small_050"])
def test_zero_init_residual_leaves_networks_without_such_blocks_alone(name):
    """mobilenetv3 has a bn2 in each block, which ends none of its residual branches."""
    torch.manual_seed(0)
    reference = build(name, 32)[0].state_dict()
    torch.manual_seed(0)
    network, _ = build(name, 32, zero_init_residual=True)
    assert all(torch.equal(v, reference[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [("resnet18", 32, "small"), ("resnet18", 64, "small"), ("resnet18", 65, "imagenet"), ("test_vit", 32, "imagenet"),
     ("resnet26d", 32, "imagenet"), ("resnet26", 32, "small")],
)  # fmt: skip
def test_choose_stem_depends_on_size_and_network(name, size, stem):
    chosen, reason = choose_stem("auto", name, size)
    assert chosen == stem
    assert reason
    assert choose_stem("imagenet", name, size) == ("imagenet", "from the flag")


@pytest.mark.parametrize(
    ("name", "size", "seen", "stem"),
    [("resnet18", 32, "imagenet", "imagenet"), ("resnet18", 224, "small", "small"),
     ("test_vit", 32, "small", "imagenet")],
)  # fmt: skip
def test_choose_stem_follows_the_weights_of_a_resnet(name, size, seen, stem):
    assert choose_stem("auto", name, size, seen)[0] == stem
    assert choose_stem("small", name, size, seen)[0] == "small"


def test_at_layer_without_a_name_is_the_network():
    network, _ = build("test_resnet", 32)
    assert at_layer(network, None) is network
    assert isinstance(at_layer(network, "layer1"), IntermediateFeatures)


@pytest.mark.parametrize("name", ["resnet18", "test_resnet.r160_in1k"])
def test_intermediate_features_of_the_last_block_are_those_of_the_network(name):
    network = build(name, 32)[0].eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(IntermediateFeatures(network, block_names(network)[-1])(x), network(x))
    earlier = IntermediateFeatures(network, "layer2")
    if name == "resnet18":
        inner = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
        torch.testing.assert_close(earlier(x), network.layer2(inner).mean(dim=(2, 3)))
    assert earlier(x).shape == (2, {"resnet18": 128}.get(name, 48))
    assert not network.layer2._forward_hooks, "the network keeps no hook"


@pytest.mark.parametrize(
    ("name", "size", "width", "positions"),
    [("test_vit", 32, 64, 1), ("swin_tiny_patch4_window7_224", 224, 768, (1, 2)), ("convnext_atto", 64, 320, (2, 3))],
)
def test_intermediate_features_are_averaged_over_positions_and_never_over_channels(name, size, width, positions):
    network = build(name, size)[0].eval()
    last, outputs = block_names(network)[-1], []
    network.get_submodule(last).register_forward_hook(lambda module, inputs, out: outputs.append(out))
    features = IntermediateFeatures(network, last)(torch.randn(2, 3, size, size))
    assert features.shape == (2, width)
    torch.testing.assert_close(features, outputs[0].mean(dim=positions))


def test_intermediate_features_of_an_unknown_block_are_refused_with_the_known_ones():
    network = build("resnet18", 32)[0]
    with pytest.raises(UserError, match="--layer layer5: .*no such block.* layer1, layer2, layer3, layer4"):
        IntermediateFeatures(network, "layer5")


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet", "resnet18", "convnext_atto"])
def test_networks_without_options_are_those_of_before(name):
    """The flags of transformers change nothing where they are not given, nor the random numbers."""
    torch.manual_seed(0)
    network, _ = build(name, 32)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    if name in TORCHVISION:
        reference = torchvision.models.get_model(name, weights=None)
        reference.fc = nn.Identity()
    else:
        reference = timm.create_model(name, num_classes=0, **({"img_size": 32} if "vit" in name else {}))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in reference.state_dict().items())
    assert name in TORCHVISION or torch.equal(torch.get_rng_state(), state)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(x), reference.eval()(x))


def test_patch_size_of_a_transformer():
    network, dim = build("test_vit", 32, patch_size=8)
    assert dim == 64
    assert network.patch_embed.proj.kernel_size == (8, 8)
    assert network.pos_embed.shape == (1, 1 + 16, 64)
    mixed, _ = build("test_vit", 32, 16, patch_size=4)
    assert mixed.eval()(torch.zeros(2, 3, 16, 16)).shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "sizes", "options", "message"),
    [
        ("test_vit", (32,), {"patch_size": 5}, "take --patch_size 4, or --large_size 30 or 35$"),
        ("test_vit", (96, 40), {"patch_size": 12}, "views of 40 .*take --patch_size 8, or --small_size 36 or 48$"),
        ("test_vit", (40,), {}, "test_vit with patches of 16 pixels: views of 40 .*, or --large_size 32 or 48$"),
        ("test_vit", (32,), {"patch_size": 64}, "take --patch_size 32, or --large_size 64$"),
        ("resnet18", (32,), {"patch_size": 8}, "--patch_size 8: resnet18 has no patches .*vit_small_patch16_224"),
        ("test_resnet", (32,), {"patch_size": 8}, "--patch_size 8: test_resnet has no patches"),
        ("convnext_atto", (32,), {"patch_size": 4}, "--patch_size 4: convnext_atto has no patches"),
        ("resnet18", (32,), {"drop_path": 0.1}, "--drop_path 0.1: resnet18 has no drop path; remove it"),
        ("dla46_c", (32,), {"drop_path": 0.1}, "--drop_path 0.1: dla46_c has no drop path; remove it"),
        ("resnet18", (32,), {"pool": "avg"}, "--pool avg: resnet18 has no choice of pooling; remove it"),
        ("test_vit2", (32,), {"pool": "token"}, "--pool token: test_vit2 has no class token; remove it"),
    ],
)
def test_options_that_a_network_does_not_take_are_refused_in_one_line(name, sizes, options, message):
    with pytest.raises(UserError, match=message) as e:
        build(name, *sizes, **options)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "convnext_atto"])
def test_drop_path_is_on_in_training_and_off_in_evaluation(name):
    torch.manual_seed(0)
    network, _ = build(name, 32, drop_path=0.9)
    torch.manual_seed(0)
    plain, _ = build(name, 32)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in network.state_dict().items()), "the same weights"
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(network.eval()(x), plain.eval()(x))
    norms = [m for m in network.train().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.ones_(norm.eval().weight)  # timm starts the last ones of residual blocks at zero
    torch.manual_seed(1)
    assert not torch.equal(network(x), network(x))


def test_pool_changes_the_features_and_no_tensor():
    torch.manual_seed(0)
    token, _ = build("test_vit", 32, pool="token")
    average, _ = build("test_vit", 32, pool="avg")
    average.load_state_dict(token.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    tokens = token.eval().forward_features(x)
    torch.testing.assert_close(token(x), tokens[:, 0])
    torch.testing.assert_close(average.eval()(x), tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize(("large", "small"), [(32, None), (96, 32), (224, 96), (512, 32)])
def test_transformer_takes_views_from_32_to_512_pixels(large, small):
    network, dim = build("test_vit", large, small)
    for size in (large, small or large):
        assert network.eval()(torch.zeros(1, 3, size, size)).shape == (1, dim)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_last_blocks_are_the_class_tokens_of_those_blocks_after_the_final_norm(name, pool):
    network = build(name, 32, pool=pool)[0].eval()
    with torch.no_grad():
        network.norm.weight.mul_(torch.rand(network.embed_dim) + 0.5)
    x, outputs = torch.randn(2, 3, 32, 32), []
    hooks = [b.register_forward_hook(lambda module, inputs, out: outputs.append(out)) for b in network.blocks[-3:]]
    expected_last = network(x)
    for hook in hooks:
        hook.remove()
    pooled = [o[:, 0] if pool == "token" else o[:, 1:].mean(dim=1) for o in map(network.norm, outputs)]
    features = LastBlocks(network, 3)(x)
    torch.testing.assert_close(features, torch.cat(pooled, dim=1))
    torch.testing.assert_close(features[:, -network.embed_dim :], expected_last)
    torch.testing.assert_close(at_layer(network, None, 1)(x), expected_last)


def test_last_blocks_of_an_average_pooled_network_have_its_norm():
    network = build("test_vit2", 32)[0].eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(LastBlocks(network, 2)(x)[:, 64:], network(x))


def test_last_blocks_are_refused_where_there_are_none():
    with pytest.raises(
        UserError, match="--last_blocks 4: the backbone is a ResNet, .*; remove it, or take .*vit_small"
    ):
        LastBlocks(build("resnet18", 32)[0], 4)
    with pytest.raises(UserError, match="--last_blocks 7: the backbone has 6 blocks; lower it to 6"):
        LastBlocks(build("test_vit", 32)[0], 7)


def test_part_name_tells_features_of_one_file_of_weights_apart():
    assert part_name(None, None, None) is None
    names = [part_name("layer2", None, None), part_name(None, 4, None), part_name(None, 4, "avg"),
             part_name(None, None, "avg"), part_name(None, None, "token")]  # fmt: skip
    assert names == ["layer2", "last 4 blocks", "last 4 blocks, pool avg", "pool avg", "pool token"]
