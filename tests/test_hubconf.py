"""Entry points of torch.hub, from a program of one's own in another folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import hubconf
from backbones.build import build_backbone
from backbones.load import save_backbone
from data.datasets import DATASETS
from evaluation.features import extract
from tests.helpers.commands import ROOT, TINY
from tests.helpers.evaluation import CPU
from tests.helpers.images import write_image
from utils.errors import UserError
from utils.plan import BackboneConfig


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder whose backbone has random weights, trained on digits of 32 pixels."""
    network, _ = build_backbone(BackboneConfig(TINY[1], "imagenet"), 32)
    facts = {"method": "simclr", "dataset": "digits", "backbone": TINY[1], "stem": "imagenet", "large_size": "32"}
    (tmp_path / "RUN").mkdir()
    save_backbone(tmp_path / "RUN" / "backbone.safetensors", network, facts)
    return tmp_path / "RUN"


def test_embed_gives_names_and_features_of_evaluation_views(tmp_path, run):
    """The vectors are those that an evaluation of the same images computes."""
    from data.datasets import read_dataset
    from data.pipelines.choose import build_pipeline
    from data.views import ViewSpec

    for name, mode in (("a.png", "RGB"), ("b.jpg", "L"), ("sub/c.png", "RGBA")):
        write_image(tmp_path / "photos" / name, mode, size=(70, 50))
    names, vectors = hubconf.embed(str(run), str(tmp_path / "photos"), batch_size=2)
    assert names == ["a.png", "b.jpg", "sub/c.png"]
    data = read_dataset("custom", str(tmp_path / "photos"), None, None)
    data.mean, data.std = DATASETS["digits"].mean, DATASETS["digits"].std
    module = build_pipeline("stream", data, [ViewSpec(32)], 2, 0, 0, None, "cpu")
    expected = extract(hubconf.backbone(str(run)), module.eval_dataloader("train", CPU)).x
    torch.testing.assert_close(vectors, expected)


def test_transform_takes_pictures_of_pillow(tmp_path, run):
    network = hubconf.backbone(str(run))
    assert not network.training
    path = write_image(tmp_path / "a.png", size=(70, 50))
    from_pillow = network.transform(Image.open(path))
    _, vectors = hubconf.embed(str(run), str(tmp_path))
    torch.testing.assert_close(network(from_pillow[None]), vectors)


def test_hub_lists_the_two_entry_points():
    entries = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")]
    assert entries == ["backbone", "embed"]
    assert all(hasattr(hubconf, "dependencies") and __import__(name) for name in hubconf.dependencies)


@pytest.mark.slow  # a program of its own imports torch
def test_hub_loads_in_another_folder(tmp_path, run):
    """Nothing is imported later than in torch.hub.load, which takes the repository off the path again."""
    write_image(tmp_path / "photos" / "a.png")
    code = (
        f"import torch\n"
        f"network = torch.hub.load({str(ROOT)!r}, 'backbone', 'RUN', source='local')\n"
        f"names, vectors = torch.hub.load({str(ROOT)!r}, 'embed', 'RUN', 'photos', source='local')\n"
        f"from PIL import Image\n"
        f"again = network(network.transform(Image.open('photos/a.png'))[None])\n"
        f"torch.testing.assert_close(again, vectors)\n"
        f"print(names)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "['a.png']\n", done.stderr


def test_mistakes_are_errors_of_one_line(tmp_path, run):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "w.pth")
    (tmp_path / "empty").mkdir()
    for call, message in (
        (lambda: hubconf.backbone(str(tmp_path / "w.pth")), "does not name its backbone; give it as name="),
        (lambda: hubconf.backbone(str(tmp_path / "w.pth"), "resnet18"), "give the backbone of the weights as name="),
        (lambda: hubconf.embed(str(run), str(tmp_path / "none")), "none is not a folder"),
        (lambda: hubconf.embed(str(run), str(tmp_path / "empty")), "empty has no images"),
    ):
        with pytest.raises(UserError, match=message):
            call()
