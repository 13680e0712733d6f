"""The models of other libraries that have the tensors of a backbone."""

import pytest

from backbones.build import build_backbone
from backbones.library_models import library_tensors, timm_arguments
from utils.errors import UserError
from utils.plan import BackboneConfig


def test_timm_arguments_are_those_that_the_network_takes():
    assert timm_arguments({"backbone": "test_vit", "patch_size": "8"}, 32)[1] == {"img_size": 32, "patch_size": 8}
    assert timm_arguments({"backbone": "resnet18"}, 32)[1] == {}


def test_library_tensors_refuses_another_network():
    network, _ = build_backbone(BackboneConfig("test_resnet", "imagenet"), 32)
    card = {"backbone": "test_resnet", "stem": "imagenet"}
    assert library_tensors("timm", network, card, 32)[0].keys() == network.state_dict().keys()
    with pytest.raises(UserError, match=r"the backbone is not timm.create_model\('test_vit'"):
        library_tensors("timm", network, card | {"backbone": "test_vit"}, 32)
