"""Backbones by name, their stems, their widths."""

import pytest
import timm
import torch
import torchvision

from backbones.build import IntermediateFeatures, block_names, build_backbone, choose_stem
from utils.errors import UserError


@pytest.mark.parametrize(("name", "size", "dim"), [("resnet18", 32, 512), ("resnet50", 32, 2048), ("test_vit", 32, 64)])
def test_features_have_the_width_that_is_told(name, size, dim):
    network, told = build_backbone(name, "imagenet", size)
    assert told == dim
    assert network.training
    assert network.eval()(torch.zeros(2, 3, size, size)).shape == (2, dim)


def test_small_stem_keeps_the_resolution():
    small, dim = build_backbone("resnet18", "small", 32)
    assert dim == 512
    assert small.conv1.kernel_size == (3, 3)
    assert small.layer1(small.maxpool(small.conv1(torch.zeros(1, 3, 32, 32)))).shape[-1] == 32


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [("resnet18", 32, "small"), ("resnet18", 64, "small"), ("resnet18", 96, "imagenet"), ("test_vit", 32, "imagenet"),
     ("resnet26d", 32, "imagenet"), ("resnet26", 32, "small")],
)  # fmt: skip
def test_automatic_stem(name, size, stem):
    chosen, reason = choose_stem("auto", name, size)
    assert chosen == stem
    assert reason
    assert choose_stem("imagenet", name, size) == ("imagenet", "as given")


def test_weights_carry_the_names_of_their_library():
    """What a plain library loads: everything but the classifier."""
    tv, _ = build_backbone("resnet18", "imagenet", 64)
    reference = torchvision.models.resnet18(weights=None).state_dict()
    assert list(tv.state_dict()) == [k for k in reference if not k.startswith("fc.")]
    own, _ = build_backbone("test_resnet", "imagenet", 64)
    assert list(own.state_dict()) == list(timm.create_model("test_resnet", num_classes=0).state_dict())


def test_unknown_names_show_the_nearest():
    with pytest.raises(UserError, match=r"unknown backbone 'resnet81' \(did you mean .*resnet18"):
        build_backbone("resnet81", "imagenet", 32)


def test_impossible_combinations_are_refused():
    with pytest.raises(UserError, match="--stem small replaces the 7x7 stem of a ResNet, which test_vit does not have"):
        build_backbone("test_vit", "small", 32)
    with pytest.raises(UserError, match="vgg11 cannot see views of 16 pixels"):
        build_backbone("vgg11", "imagenet", 16)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_resnet"])
def test_small_views_go_through_the_same_network(name):
    network, dim = build_backbone(name, "imagenet", 64, 32)
    plain, _ = build_backbone(name, "imagenet", 64)
    assert network.state_dict().keys() == plain.state_dict().keys(), "the weights fit the ordinary network"
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == network(torch.zeros(2, 3, 64, 64)).shape == (2, dim)


def test_small_views_that_a_network_cannot_see_are_told():
    with pytest.raises(UserError, match="cannot see views of 20 pixels .*; choose another --small_size"):
        build_backbone("test_vit", "imagenet", 64, 20)


@pytest.mark.parametrize("name", ["resnet18", "test_resnet.r160_in1k"])
def test_the_last_block_of_a_resnet_is_what_the_network_gives(name):
    network = build_backbone(name, "imagenet", 32)[0].eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(IntermediateFeatures(network, block_names(network)[-1])(x), network(x))
    earlier = IntermediateFeatures(network, "layer2")
    inner = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x))))) if name == "resnet18" else None
    if inner is not None:
        torch.testing.assert_close(earlier(x), network.layer2(inner).mean(dim=(2, 3)))
    assert earlier(x).shape == (2, {"resnet18": 128}.get(name, 48))
    assert not network.layer2._forward_hooks, "the network is left as it was"


@pytest.mark.parametrize(
    ("name", "size", "width", "positions"),
    [("test_vit", 32, 64, 1), ("swin_tiny_patch4_window7_224", 224, 768, (1, 2)), ("convnext_atto", 64, 320, (2, 3))],
)
def test_a_block_is_averaged_over_positions_and_never_over_channels(name, size, width, positions):
    network = build_backbone(name, "imagenet", size)[0].eval()
    last, seen = block_names(network)[-1], []
    network.get_submodule(last).register_forward_hook(lambda module, inputs, out: seen.append(out))
    features = IntermediateFeatures(network, last)(torch.randn(2, 3, size, size))
    assert features.shape == (2, width)
    torch.testing.assert_close(features, seen[0].mean(dim=positions))


def test_a_block_that_is_not_there_is_refused_with_those_that_are():
    network = build_backbone("resnet18", "imagenet", 32)[0]
    with pytest.raises(UserError, match="--layer layer5: no such block .*; there are layer1, layer2, layer3, layer4"):
        IntermediateFeatures(network, "layer5")
