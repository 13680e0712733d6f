"""Tests of ResNets with a factor of their channels: shapes beside torchvision's, names, refusals."""

import re

import pytest
import torch
import torchvision

from backbones.build import build_backbone
from backbones.scaled_resnet import LAYERS, ScaledResNet, scaled_name
from utils.errors import UserError
from utils.plan import BackboneConfig


@pytest.mark.parametrize("name", LAYERS)
def test_factor_1_is_torchvisions_own_network(name):
    with torch.device("meta"):
        own = torchvision.models.get_model(name, weights=None).state_dict()
        scaled = ScaledResNet(scaled_name(f"{name}x1")).state_dict()
    assert {k: v.shape for k, v in scaled.items()} == {k: v.shape for k, v in own.items() if not k.startswith("fc.")}


@pytest.mark.parametrize(("name", "factor"), [("resnet18", 0.25), ("resnet50", 2), ("resnet34", 0.5)])
def test_every_channel_but_the_colours_is_multiplied(name, factor):
    with torch.device("meta"):
        own = torchvision.models.get_model(name, weights=None).state_dict()
        scaled = ScaledResNet(scaled_name(f"{name}x{factor}")).state_dict()
    for key, tensor in scaled.items():
        channels = [n if n == 3 and key == "conv1.weight" else n * factor for n in own[key].shape[:2]]
        assert tensor.shape == (*(int(n) for n in channels), *own[key].shape[2:]), key


def test_parameters_of_resnet50x2_are_those_that_simclr_reports():
    """Chen et al., 2020, tab. 6: ResNet-50 (2x) has 94 million parameters."""
    with torch.device("meta"):
        network = ScaledResNet(scaled_name("resnet50x2"))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 94


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_scaled_resnet_is_built_with_both_stems_and_zero_init(stem):
    network, width = build_backbone(BackboneConfig("resnet18x0.25", stem, zero_init_residual=True), 32)
    assert width == 128
    assert network.conv1.weight.shape == (16, 3, *((3, 3) if stem == "small" else (7, 7)))
    assert not network.layer1[0].bn2.weight.any()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    assert network.conv1.weight.std() > 0.01


@pytest.mark.parametrize("name", ["resnet18x0.3", "resnet18x0", "resnet18x0.01"])
def test_factor_without_whole_channels_is_refused(name):
    with pytest.raises(UserError, match=f"backbone {re.escape(name)}: .* needs a whole number"):
        build_backbone(BackboneConfig(name, "small"), 32)


def test_other_names_are_no_scaled_resnets():
    names = ["resnet18", "resnet18x", "resnext50_32x4d", "wide_resnet50_2", "xresnet18x2"]
    assert [scaled_name(name) for name in names] == [None] * 5
    with pytest.raises(UserError, match="unknown backbone 'resnet20x2'"):
        build_backbone(BackboneConfig("resnet20x2", "imagenet"), 32)
