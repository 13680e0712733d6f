"""Backbones for other libraries: their own models load the files and return the same features."""

import copy
import functools
import sys

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from backbones.build import TORCHVISION, build_backbone
from backbones.export import export_backbone, model_card
from backbones.load import read_metadata
from utils.errors import UserError

CARD = {
    "backbone": "resnet18", "used_stem": "imagenet", "method": "simclr", "dataset": "digits", "large_size": "32",
    "epochs": "20", "steps": "220", "seconds": "165.2", "seed": "None", "commit": "unknown", "mean": "(0.1, 0.2, 0.3)",
    "std": "(0.4, 0.5, 0.6)", "result: kNN 20": "97.5", "command": "python3 main_contrastive.py digits resnet18",
}  # fmt: skip


@functools.cache
def trained(name, stem="imagenet", size=32):
    """A network without a tensor of zeros or ones, in training mode but for one frozen layer."""
    network, _ = build_backbone(name, stem, size)
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.ndim == 1:
            value.mul_(1 + 0.1 * torch.rand(value.shape, generator=generator))
            value.add_(0.02 * torch.rand(value.shape, generator=generator))
    network.train()
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)).eval()
    return network


def features(network, images):
    modes = {m: m.training for m in network.modules()}
    with torch.no_grad():
        result = network.eval()(images)
    for module, mode in modes.items():
        module.training = mode
    return result


def load(path):
    read = safetensors.torch.load_file if path.suffix == ".safetensors" else torch.load
    return read(path)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_torchvision_loads_its_own_model(tmp_path, ending):
    backbone, path = trained("resnet18"), tmp_path / f"weights{ending}"
    assert export_backbone("torchvision", path, backbone, CARD, 32) == [path, tmp_path / "weights.md"]
    own = torchvision.models.get_model("resnet18", weights=None)
    own.load_state_dict(load(path), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(own.eval()(images), torch.zeros(2, 1000)), "nobody trained fc"
    own.fc = nn.Identity()
    assert torch.equal(features(own, images), features(backbone, images))


@pytest.mark.parametrize(
    ("name", "ending"),
    [("resnet18", ".safetensors"), ("resnet18", ".pth"), ("test_resnet.r160_in1k", ".safetensors"),
     ("test_resnet.r160_in1k", ".pt"), ("test_resnet.r160_in1k", ".ckpt")],
)  # fmt: skip
def test_timm_loads_its_own_model(tmp_path, name, ending):
    backbone, path = trained(name), tmp_path / f"weights{ending}"
    export_backbone("timm", path, backbone, CARD | {"backbone": name}, 32)
    own = timm.create_model(name, num_classes=0)
    own.load_state_dict(load(path), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(features(own, images), features(backbone, images))


@pytest.mark.parametrize("name", TORCHVISION)
def test_timm_names_the_tensors_of_torchvision_alike(name):
    with torch.device("meta"):
        a = torchvision.models.get_model(name, weights=None).state_dict()
        b = timm.create_model(name, num_classes=0).state_dict()
    assert {k: v.shape for k, v in b.items()} == {k: v.shape for k, v in a.items() if not k.startswith("fc.")}


def run_code_of(card, folder, monkeypatch):
    """What the three lines of a model card define."""
    names = {}
    monkeypatch.chdir(folder)
    code = card.read_text().partition("```python\n")[2].partition("\n```")[0]
    assert len(code.splitlines()) == 3
    exec(code, names)
    return names


@pytest.mark.parametrize(
    ("kind", "name", "ending"), [("torchvision", "resnet18", ".pth"), ("timm", "test_vit", ".safetensors")]
)
def test_the_code_of_the_card_loads_the_weights(tmp_path, monkeypatch, kind, name, ending):
    """test_vit: the file holds positions for 32 pixels, so timm's model has to be built for them."""
    backbone = trained(name)
    _, card = export_backbone(kind, tmp_path / f"mine{ending}", backbone, CARD | {"backbone": name}, 32)
    own = run_code_of(card, tmp_path, monkeypatch)["network"]
    own.fc = nn.Identity() if kind == "torchvision" else None
    assert not own.training
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own(images), features(backbone, images))


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "small"), ("test_vit", "imagenet")])
def test_onnx_returns_the_features_of_torch(tmp_path, monkeypatch, capfd, name, stem):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} comes with requirements-onnx.txt")
    backbone, path, random = copy.deepcopy(trained(name, stem)), tmp_path / "net.onnx", torch.get_rng_state()
    if name == "test_vit":
        backbone.blocks = backbone.blocks[:1]  # the exporter takes seconds for the others
    modes = [m.training for m in backbone.modules()]
    written = export_backbone("onnx", path, backbone, CARD | {"backbone": name, "used_stem": stem}, 32)
    assert sorted(written) == sorted(tmp_path.iterdir()), "one file and its card"
    assert capfd.readouterr() == ("", "")
    assert [m.training for m in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert str(torch.__path__[0]).encode() not in path.read_bytes(), "no folders of this machine"
    session = sys.modules["onnxruntime"].InferenceSession(str(path))
    for n in (1, 3):
        images = torch.randn(n, 3, 32, 32)
        (got,) = session.run(["features"], {"images": images.numpy()})
        wanted = features(backbone, images)
        assert (torch.from_numpy(got) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert "Compared with torch on random images" in written[-1].read_text()
    assert run_code_of(written[-1], tmp_path, monkeypatch)["features"].shape == wanted[:1].shape


def test_onnx_that_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} comes with requirements-onnx.txt")
    monkeypatch.setattr("backbones.export.TOLERANCE", -1.0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(UserError, match="onnx features of resnet18 differ from torch's by .* nothing was written"):
        export_backbone("onnx", tmp_path / "x.onnx", network, CARD, 8)
    assert not list(tmp_path.iterdir())


class Undecided(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_onnx_that_cannot_be_written_says_why(tmp_path, capfd):
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library, reason=f"{library} comes with requirements-onnx.txt")
    with pytest.raises(UserError, match=r"resnet18 cannot be exported to onnx at 8 pixels \(Could not guard .*; use"):
        export_backbone("onnx", tmp_path / "x.onnx", Undecided(), CARD, 8)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_onnx_that_could_not_be_compared_says_so(tmp_path, monkeypatch):
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library, reason=f"{library} comes with requirements-onnx.txt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    written = export_backbone("onnx", tmp_path / "x.onnx", network, CARD, 8)
    assert "Not compared with torch: onnxruntime was not installed." in written[-1].read_text()


def test_onnx_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="needs .*onnxscript: pip install -r requirements-onnx.txt"):
        export_backbone("onnx", tmp_path / "x.onnx", nn.Identity(), CARD, 32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "ending", "card", "message"),
    [
        ("timn", ".pth", {}, r"unknown export 'timn' \(did you mean timm\?\)"),
        ("timm", ".onnx", {}, r"x.onnx ends in .onnx, but timm needs a file name that ends in .safetensors or .pth"),
        ("onnx", "", {}, r"x ends in nothing, but onnx needs a file name that ends in .onnx"),
        ("torchvision", ".pth", {"backbone": "test_resnet"}, "test_resnet is not one of torchvision's ResNets"),
        ("timm", ".pth", {"backbone": "resnet81"}, r"timm has no resnet81 \(did you mean .*resnet18"),
        ("torchvision", ".pth", {"used_stem": "small"}, "7x7 .* no place for these weights; export to onnx"),
        ("timm", ".pth", {"used_stem": "small"}, "7x7 .* or use the run's backbone.safetensors"),
        ("timm", ".pth", {}, r"the backbone is not timm.create_model\('resnet18'.*: 120 tensors differ"),
    ],
)
def test_refusals(tmp_path, kind, ending, card, message):
    with pytest.raises(UserError, match=message):
        export_backbone(kind, tmp_path / f"x{ending}", nn.Identity(), CARD | card, 32)
    assert not list(tmp_path.iterdir())


def test_sizes_that_timm_does_not_build_are_refused(tmp_path):
    with pytest.raises(UserError, match="nest_tiny cannot be built for views of 30 pixels .*must divide"):
        export_backbone("timm", tmp_path / "x.pth", nn.Identity(), CARD | {"backbone": "nest_tiny"}, 30)


@pytest.mark.parametrize("there", ["x.pth", "x.md"])
def test_nothing_is_overwritten(tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(UserError, match=f"{there} exists and is not overwritten"):
        export_backbone("timm", tmp_path / "x.pth", nn.Identity(), CARD, 32)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full_disk)
    card, backbone = CARD | {"backbone": "test_resnet"}, trained("test_resnet")
    with pytest.raises(UserError, match="cannot write .*x.pth .No space left on device."):
        export_backbone("timm", tmp_path / "x.pth", backbone, card, 32)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot write .*x.pth .No such file or directory."):
        export_backbone("timm", tmp_path / "gone" / "x.pth", backbone, card, 32)


def test_card_tells_what_is_known(tmp_path):
    path, backbone = tmp_path / "x.safetensors", trained("resnet18")
    told = export_backbone("torchvision", path, backbone, CARD, 32)[1].read_text()
    assert {
        "# resnet18", "- pretrained by: simclr", "- data set: digits", "- epochs: 20", "- steps: 220",
        "- seconds of training: 165.2", "- kNN 20: 97.5", "python3 main_contrastive.py digits resnet18",
    } <= set(told.splitlines())  # fmt: skip
    assert "(N, 3, 32, 32)" in told
    assert "minus mean (0.1, 0.2, 0.3), divided by std (0.4, 0.5, 0.6)" in told
    assert "`network.fc` is a classifier of 1000 classes that nobody trained" in told
    assert "seed" not in told, "None"
    assert "commit" not in told, "unknown"
    assert read_metadata(path) == CARD


def test_card_invents_nothing():
    told = model_card({"backbone": "resnet18", "mean": "(0.5, 0.5, 0.5)"})
    assert [line for line in told.splitlines() if line.startswith("#")] == ["# resnet18", "## Inputs"]
    assert "mean" not in told, "of no use without the deviation"
