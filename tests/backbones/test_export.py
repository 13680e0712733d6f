"""Exports that torchvision, timm and ONNX Runtime load with equal features, and the facts for the model card."""

import copy
import functools
import sys

import pytest
import pytorch_lightning as pl
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from backbones.build import TORCHVISION, build_backbone
from backbones.export import check_target, export_backbone, loading_code, run_card
from backbones.load import open_weights, read_metadata, save_backbone
from runs.checkpoint import AtomicCheckpointIO, CheckpointCallback
from utils.errors import UserError
from utils.files import write_json
from utils.memory_layout import convolutions_channels_last
from utils.plan import BackboneConfig

CARD = {
    "backbone": "resnet18", "stem": "imagenet", "method": "simclr", "dataset": "digits", "large_size": "32",
    "epochs": "20", "steps": "220", "mean": "(0.1, 0.2, 0.3)", "std": "(0.4, 0.5, 0.6)",
}  # fmt: skip
ONNX = ("onnx", "onnxscript", "onnxruntime")


def need(*libraries):
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} comes with requirements-onnx.txt")


@functools.cache
def trained(name, stem="imagenet", size=32):
    """A network without a tensor of zeros or ones, in training mode except for one frozen layer."""
    network, _ = build_backbone(BackboneConfig(name, stem), size)
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
def test_export_backbone_for_torchvision_loads_in_its_own_model(tmp_path, ending):
    backbone, path = trained("resnet18"), tmp_path / f"weights{ending}"
    assert export_backbone("torchvision", path, backbone, CARD, 32) == [path, tmp_path / "weights.md"]
    own = torchvision.models.get_model("resnet18", weights=None)
    own.load_state_dict(load(path), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(own.eval()(images), torch.zeros(2, 1000)), "fc is untrained"
    own.fc = nn.Identity()
    assert torch.equal(features(own, images), features(backbone, images))


@pytest.mark.parametrize(
    ("name", "ending"),
    [("resnet18", ".safetensors"), ("resnet18", ".pth"), ("test_resnet.r160_in1k", ".safetensors"),
     ("test_resnet.r160_in1k", ".pt"), ("test_resnet.r160_in1k", ".ckpt")],
)  # fmt: skip
def test_export_backbone_for_timm_loads_in_its_own_model(tmp_path, name, ending):
    backbone, path = trained(name), tmp_path / f"weights{ending}"
    export_backbone("timm", path, backbone, CARD | {"backbone": name}, 32)
    own = timm.create_model(name, num_classes=0)
    own.load_state_dict(load(path), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(features(own, images), features(backbone, images))


@pytest.mark.parametrize(("kind", "file"), [("timm", "x.safetensors"), ("torchvision", "x.safetensors"), ("hub", "x")])
def test_export_backbone_after_an_evaluation_on_a_gpu_which_leaves_convolutions_channels_last(tmp_path, kind, file):
    backbone = copy.deepcopy(trained("resnet18"))
    convolutions_channels_last(backbone, "cuda")
    assert not backbone.conv1.weight.is_contiguous()
    path = export_backbone(kind, tmp_path / file, backbone, CARD, 32)[0]
    written, expected = load(path), trained("resnet18").state_dict()
    assert all(torch.equal(written[key], value) for key, value in expected.items())
    assert not backbone.conv1.weight.is_contiguous(), "the network itself stays as it was"


@pytest.mark.parametrize("name", TORCHVISION)
def test_tensor_names_of_timm_and_torchvision_are_equal(name):
    with torch.device("meta"):
        a = torchvision.models.get_model(name, weights=None).state_dict()
        b = timm.create_model(name, num_classes=0).state_dict()
    assert {k: v.shape for k, v in b.items()} == {k: v.shape for k, v in a.items() if not k.startswith("fc.")}


def run_code_of(card, folder, monkeypatch, lines=3):
    """Run the lines of Python in a model card and return the names that they define."""
    names = {}
    monkeypatch.chdir(folder)
    code = card.read_text().partition("```python\n")[2].partition("\n```")[0]
    assert len(code.splitlines()) == lines
    exec(code, names)
    return names


@pytest.mark.parametrize(
    ("kind", "name", "ending"), [("torchvision", "resnet18", ".pth"), ("timm", "test_vit", ".safetensors")]
)
def test_export_backbone_writes_a_card_whose_code_loads_the_weights(tmp_path, monkeypatch, kind, name, ending):
    """test_vit: the file holds positions for 32 pixels, so timm's model has to be built for them."""
    backbone = trained(name)
    _, card = export_backbone(kind, tmp_path / f"mine{ending}", backbone, CARD | {"backbone": name}, 32)
    own = run_code_of(card, tmp_path, monkeypatch)["network"]
    own.fc = nn.Identity() if kind == "torchvision" else None
    assert not own.training
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own(images), features(backbone, images))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("test_vit", "imagenet"),
        pytest.param("resnet18", "small", marks=pytest.mark.slow),
        pytest.param("test_resnet.r160_in1k", "imagenet", marks=pytest.mark.slow),
    ],
)
def test_export_backbone_to_onnx_returns_the_features_of_torch(tmp_path, monkeypatch, capfd, name, stem):
    need(*ONNX)
    backbone, path, random = copy.deepcopy(trained(name, stem)), tmp_path / "net.onnx", torch.get_rng_state()
    if name == "test_vit":
        backbone.blocks = backbone.blocks[:1]  # the exporter takes seconds for the other blocks
    modes = [m.training for m in backbone.modules()]
    written = export_backbone("onnx", path, backbone, CARD | {"backbone": name, "stem": stem}, 32)
    assert sorted(written) == sorted(tmp_path.iterdir()), "one file and its card"
    assert capfd.readouterr() == ("", "")
    assert [m.training for m in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert str(torch.__path__[0]).encode() not in path.read_bytes(), "no folder of the machine"
    session = sys.modules["onnxruntime"].InferenceSession(str(path))
    for n in (1, 3):
        images = torch.randn(n, 3, 32, 32)
        (got,) = session.run(["features"], {"images": images.numpy()})
        expected = features(backbone, images)
        assert (torch.from_numpy(got) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert "Compared with torch on random images" in written[-1].read_text()
    assert run_code_of(written[-1], tmp_path, monkeypatch)["features"].shape == expected[:1].shape


def test_export_backbone_to_onnx_writes_nothing_that_differs_from_torch(tmp_path, monkeypatch):
    need(*ONNX)
    monkeypatch.setattr("backbones.export.TOLERANCE", -1.0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(UserError, match="onnx features of resnet18 differ from torch's by .* nothing was written"):
        export_backbone("onnx", tmp_path / "x.onnx", network, CARD, 8)
    assert not list(tmp_path.iterdir())


class DataDependent(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_export_backbone_to_onnx_explains_why_a_network_fails(tmp_path, capfd):
    need("onnx", "onnxscript")
    with pytest.raises(UserError, match=r"resnet18 cannot be exported to onnx at 8 pixels \(Could not guard .*; use"):
        export_backbone("onnx", tmp_path / "x.onnx", DataDependent(), CARD, 8)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_export_backbone_to_onnx_notes_that_it_was_not_compared(tmp_path, monkeypatch):
    need("onnx", "onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    written = export_backbone("onnx", tmp_path / "x.onnx", network, CARD, 8)
    assert "Not compared with torch: onnxruntime was not installed." in written[-1].read_text()


def test_export_backbone_to_onnx_names_the_missing_library(tmp_path, monkeypatch):
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
        ("timm", ".pth", {"backbone": "resnet81"}, r"timm has no model resnet81 \(did you mean .*resnet18"),
        ("torchvision", ".pth", {"stem": "small"}, "7x7 .*cannot load these weights; export to onnx"),
        ("timm", ".pth", {"stem": "small"}, "7x7 .* or use the run's backbone.safetensors"),
        ("timm", ".pth", {}, r"the backbone is not timm.create_model\('resnet18'.*: 120 tensors differ"),
    ],
)
def test_export_backbone_refuses(tmp_path, kind, ending, card, message):
    with pytest.raises(UserError, match=message):
        export_backbone(kind, tmp_path / f"x{ending}", nn.Identity(), CARD | card, 32)
    assert not list(tmp_path.iterdir())


def test_export_backbone_refuses_sizes_that_timm_does_not_build(tmp_path):
    with pytest.raises(UserError, match="nest_tiny cannot be built for views of 30 pixels .*must divide"):
        export_backbone("timm", tmp_path / "x.pth", nn.Identity(), CARD | {"backbone": "nest_tiny"}, 30)


@pytest.mark.parametrize("there", ["x.pth", "x.md"])
def test_export_backbone_overwrites_nothing(tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(UserError, match=f"{there} exists and is not overwritten"):
        export_backbone("timm", tmp_path / "x.pth", nn.Identity(), CARD, 32)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_export_backbone_leaves_nothing_after_a_failed_write(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full_disk)
    card, backbone = CARD | {"backbone": "test_resnet"}, trained("test_resnet")
    with pytest.raises(UserError, match="cannot write .*x.pth .No space left on device."):
        export_backbone("timm", tmp_path / "x.pth", backbone, card, 32)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot write .*x.pth .No such file or directory."):
        export_backbone("timm", tmp_path / "gone" / "x.pth", backbone, card, 32)


def test_export_backbone_writes_the_card_into_safetensors_too(tmp_path):
    path = tmp_path / "x.safetensors"
    text = export_backbone("torchvision", path, trained("resnet18"), CARD, 32)[1].read_text()
    assert {"# resnet18", "- method: simclr", "- epochs: 20", "- steps: 220"} <= set(text.splitlines())
    assert "(N, 3, 32, 32)" in text
    assert "untrained (zero-initialized)" in text
    assert read_metadata(path) == CARD


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("tim", "x.pth", r"unknown export 'tim' \(did you mean timm\?\)"),
        ("timm", "x", "ends in nothing, but timm needs .* .safetensors or .pth"),
        ("onnx", "there.onnx", "there.onnx exists and is not overwritten"),
    ],
)
def test_check_target_refuses(tmp_path, kind, file, message):
    (tmp_path / "there.onnx").touch()
    check_target(("onnx", tmp_path / "new.onnx"))
    with pytest.raises(UserError, match=message):
        check_target((kind, tmp_path / file))


class Tiny(pl.LightningModule):
    """A backbone of one layer that learns nothing."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)

    def training_step(self, batch, index):
        return self.backbone(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(6, 2), batch_size=2)


def fit(folder, *callbacks, **limits):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=list(callbacks), plugins=[AtomicCheckpointIO()],
                         **limits)  # fmt: skip
    write_json(folder / "args.json", {"run": "0123"})
    trainer.fit(Tiny())
    return open_weights(str(folder))


@pytest.mark.parametrize("epochs", [1, 2])
def test_run_card_counts_finished_epochs(tmp_path, epochs):
    weights = fit(tmp_path, CheckpointCallback(tmp_path, {"method": "simclr"}), max_epochs=epochs)
    card = run_card(weights, "resnet18", "small", {})
    assert (card["epochs"], card["steps"]) == (str(epochs), str(3 * epochs))


@pytest.mark.parametrize(("steps", "epochs"), [(2, 0), (3, 1), (4, 1)])
def test_run_card_does_not_count_an_epoch_that_max_steps_cut_short(tmp_path, steps, epochs):
    weights = fit(tmp_path, CheckpointCallback(tmp_path, {"method": "simclr"}), max_steps=steps)
    card = run_card(weights, "resnet18", "small", {})
    assert (card["epochs"], card["steps"]) == (str(epochs), str(steps))


def test_run_card_counts_the_finished_epochs_of_an_interrupted_run(tmp_path):
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if trainer.global_step == 4:
                save.save(trainer, pl_module)
                save.on_train_epoch_end = lambda *args: None
                trainer.should_stop = True

    save = CheckpointCallback(tmp_path, {"method": "simclr"})
    card = run_card(fit(tmp_path, save, Interrupt(), max_epochs=3), "resnet18", "small", {})
    assert (card["epochs"], card["steps"]) == ("1", "4")


ARGV = ["digits", "resnet18", "--epochs", "1", "--data_folder", "/home/someone/my images", "--output=/data/runs"]


def run_folder(folder):
    """A run folder with everything that a finished pretraining leaves."""
    save_backbone(folder / "backbone.safetensors", nn.Linear(2, 2), {"method": "simclr", "epochs": "1", "steps": "5"})
    plan = {"training_set": {"images": 1438}, "schedule": {"steps_per_epoch": 5}}
    write_json(folder / "args.json", {"argv": ARGV, "flags": {}, "plan": plan, "commit": "abc"})
    write_json(folder / "summary.json", {"knn_20": 91.25, "val_probe_acc": 80.0, "loss": 1.0, "seconds": 7.5})
    return open_weights(str(folder))


def test_run_card_collects_the_facts_of_the_run_folder(tmp_path):
    card = run_card(run_folder(tmp_path), "resnet18", "small", {"knn_20": 92.5, "fewshot_5/mean": 70.123})
    assert card == {
        "method": "simclr", "epochs": "1", "steps": "5", "backbone": "resnet18", "stem": "small", "images": "1438",
        "commit": "abc", "seconds": "7.5",
        "command": "digits resnet18 --epochs 1 --data_folder 'my images' --output=runs",
        "score: knn_20 (online, top-1 in %)": "91.25", "score: val_probe_acc (online, top-1 in %)": "80",
        "score: knn_20": "92.5", "score: fewshot_5/mean": "70.12",
    }  # fmt: skip


@pytest.mark.parametrize(("steps", "epochs"), [("2", "0.4"), ("5", "1"), ("7", "1.4")])
def test_run_card_counts_the_fraction_of_an_epoch(tmp_path, steps, epochs):
    """A run of --steps, or one that was interrupted, is not a run of 0 epochs."""
    run_folder(tmp_path)
    save_backbone(
        tmp_path / "backbone.safetensors", nn.Linear(2, 2), {"method": "simclr", "epochs": "0", "steps": steps}
    )
    assert run_card(open_weights(str(tmp_path)), "resnet18", "small", {})["epochs"] == epochs


def test_run_card_puts_the_program_before_the_arguments(tmp_path):
    card = run_card(run_folder(tmp_path), "resnet18", "small", {}, program="python3 train.py")
    assert card["command"].startswith("python3 train.py digits resnet18 ")


def test_run_card_of_foreign_weights_ignores_the_files_beside_them(tmp_path):
    run_folder(tmp_path)
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "moco.pth")
    card = run_card(open_weights(str(tmp_path / "moco.pth")), "resnet18", "imagenet", {"logistic": 88.0})
    assert card == {"backbone": "resnet18", "stem": "imagenet", "score: logistic": "88"}


def test_export_of_a_transformer_with_its_own_patches_and_pooling(tmp_path, monkeypatch):
    config = BackboneConfig("test_vit", "imagenet", patch_size=8, pool="avg")
    backbone = build_backbone(config, 32)[0]
    card = CARD | {"backbone": "test_vit", "patch_size": "8", "pool": "avg", "drop_path": "0.1"}
    _, written = export_backbone("timm", tmp_path / "mine.pth", backbone, card, 32)
    text = written.read_text()
    for fact in ("side of a patch in pixels: 8", "pooling of the tokens: avg", "drop path: 0.1", "patch_size=8"):
        assert fact in text
    own = run_code_of(written, tmp_path, monkeypatch, lines=4)["network"]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own(images), features(backbone, images))


@pytest.mark.parametrize(
    ("name", "stem", "pool", "library"),
    [("test_resnet.r160_in1k", "imagenet", "None", "timm"), ("resnet18", "small", "None", "backbones"),
     ("test_vit", "imagenet", "avg", "timm")],
)  # fmt: skip
def test_loading_code_loads_the_backbone_of_a_run(tmp_path, monkeypatch, name, stem, pool, library):
    patch = "4" if name == "test_vit" else "None"
    config = BackboneConfig(name, stem, patch_size=int(patch) if patch != "None" else None,
                            pool=None if pool == "None" else pool)  # fmt: skip
    network, _ = build_backbone(config, 32)
    save_backbone(tmp_path / "backbone.safetensors", network, {"backbone": name})
    code = loading_code("backbone.safetensors", name, stem, patch, pool, 32)
    assert library in code.splitlines()[0]
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(features(found["network"], images), features(network, images))
