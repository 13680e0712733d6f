"""Folders in the form of the Hugging Face Hub, opened by timm itself."""

import json
import os

import pytest
import timm
import torch
import yaml
from PIL import Image

from backbones.build import build_backbone
from backbones.export import check_target, export_backbone
from backbones.load import load_backbone, open_weights
from tests.helpers.images import write_image
from utils.errors import UserError
from utils.plan import BackboneConfig

CARD = {
    "backbone": "resnet18", "stem": "imagenet", "method": "simclr", "dataset": "digits", "epochs": "20",
    "mean": "(0.1, 0.2, 0.3)", "std": "(0.4, 0.5, 0.6)", "command": "python3 main_contrastive.py digits resnet18",
}  # fmt: skip


def network_of(config, size=32):
    network = build_backbone(config, size)[0].eval()
    for value in network.state_dict().values():
        if value.ndim == 1:  # norms that do nothing would hide a tensor that is not loaded
            value.add_(0.1 * torch.rand(value.shape))
    return network


@pytest.mark.parametrize(
    ("config", "card"),
    [
        (BackboneConfig("resnet18", "imagenet"), {}),  # torchvision's
        (BackboneConfig("test_resnet.r160_in1k", "imagenet"), {}),
        (BackboneConfig("test_vit", "imagenet"), {}),
        (BackboneConfig("test_vit", "imagenet", patch_size=8, pool="avg"), {"patch_size": "8", "pool": "avg"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_timm_opens_the_folder_with_equal_features(tmp_path, config, card):
    network, folder = network_of(config), tmp_path / "mine"
    written = export_backbone("hub", folder, network, CARD | {"backbone": config.name} | card, 32)
    assert written == [folder / name for name in ("model.safetensors", "config.json", "README.md")]
    other = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other(images), network(images))
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)(images).shape == (2, 7)


def test_folder_is_for_other_people(tmp_path):
    """Front matter that the Hub reads, no path of this machine, files that colleagues may read, our own loader."""
    network, folder = network_of(BackboneConfig("test_resnet", "imagenet")), tmp_path / "mine"
    before = os.umask(0o022)
    try:
        files = export_backbone("hub", folder, network, CARD | {"backbone": "test_resnet"}, 32)
    finally:
        os.umask(before)
    assert [f"{file.stat().st_mode & 0o777:o}" for file in files] == ["644"] * 3
    assert folder.stat().st_mode & 0o777 == 0o755
    _, front, card = files[2].read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "timm"
    assert "simclr" in yaml.safe_load(front)["tags"]
    assert 'timm.create_model("local-dir:mine", pretrained=True)' in card
    assert "features differ by" in card
    assert str(tmp_path).encode() not in b"".join(file.read_bytes() for file in files)
    again = network_of(BackboneConfig("test_resnet", "imagenet"))
    load_backbone(open_weights(str(files[0])), again)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_config_gives_the_transform_of_evaluation_images(tmp_path):
    folder = tmp_path / "mine"
    network = network_of(BackboneConfig("test_resnet", "imagenet"), 96)
    export_backbone("hub", folder, network, CARD | {"backbone": "test_resnet"}, 96)
    other = timm.create_model(f"local-dir:{folder}", pretrained=True)
    facts = timm.data.resolve_model_data_config(other)
    expected = {"input_size": (3, 96, 96), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert {key: tuple(facts[key]) for key in expected} == expected
    assert (facts["interpolation"], facts["crop_pct"]) == ("bilinear", 0.875)
    image = Image.open(write_image(tmp_path / "a.png", size=(150, 130)))
    assert timm.data.create_transform(**facts)(image).shape == (3, 96, 96)
    assert json.loads((folder / "config.json").read_text())["architecture"] == "test_resnet"


def test_hub_refuses_what_timm_cannot_build(tmp_path):
    network = network_of(BackboneConfig("test_resnet", "imagenet"))
    with pytest.raises(UserError, match=r"3x3 stem .*; export to onnx, or load the run by torch.hub.load"):
        export_backbone("hub", tmp_path / "mine", network, CARD | {"stem": "small"}, 32)
    with pytest.raises(UserError, match="the backbone is not timm.create_model"):
        export_backbone("hub", tmp_path / "mine", network, CARD, 32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(UserError, match="full exists and is not overwritten"):
        check_target(("hub", tmp_path / "full"))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_hub_writes_nothing_that_differs(tmp_path, monkeypatch):
    monkeypatch.setattr("backbones.hub.TOLERANCE", -1.0)
    network = network_of(BackboneConfig("test_resnet", "imagenet"))
    with pytest.raises(UserError, match="timm's features differ by .* nothing was written"):
        export_backbone("hub", tmp_path / "mine", network, CARD | {"backbone": "test_resnet"}, 32)
    assert not list(tmp_path.iterdir())


def test_hub_compares_a_copy_on_the_cpu_with_timm(tmp_path, monkeypatch):
    """A GPU rounds products of float32 to TF32, which alone differs by more than is allowed."""
    moved, original = [], torch.nn.Module.cpu
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda module: (moved.append(module), original(module))[1])
    network = network_of(BackboneConfig("test_resnet", "imagenet"))
    export_backbone("hub", tmp_path / "mine", network, CARD | {"backbone": "test_resnet"}, 32)
    (copied,) = moved
    assert copied is not network, "the network itself stays on its device"
