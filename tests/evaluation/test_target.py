"""Tests of evaluation targets: lazy features, views, titles."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluation.target import RawPixels, pretrained_info
from tests.helpers.evaluation import Pixels, target_of


class Counting(Pixels):
    """Counts the images that it sees."""

    images = 0

    def forward(self, x):
        self.images += len(x)
        return super().forward(x)


def test_features_are_extracted_when_asked_for_and_once(tmp_path):
    target = target_of(Counting(), tmp_path)
    assert (target.feature_width, target.network.images) == (8, 1)
    assert len(target.train_labels) == 1438
    assert target.network.images == 1
    assert len(target.val.x) == len(target.labelled_val.y) == 359
    assert len(target.val.x) == 359
    assert target.network.images == 360


def test_feature_width_changes_no_batch_norm(tmp_path):
    network = nn.Sequential(nn.BatchNorm2d(3), Pixels())
    assert target_of(network, tmp_path).feature_width == 8
    assert network[0].num_batches_tracked == 0
    assert network[0].training


def test_two_views_are_of_the_same_images(tmp_path):
    a, b = target_of(RawPixels(), tmp_path).two_views()
    assert a.shape == b.shape == (1438, 3 * 32 * 32)
    assert not torch.equal(a, b)
    near = torch.cosine_similarity(a, b).mean()
    assert near > torch.cosine_similarity(a, b.roll(1, dims=0)).mean() + 0.05


@dataclass(frozen=True)
class FakeWeights:
    """Weights of a run on CIFAR-10."""

    path: Path = Path("runs/r/backbone.safetensors")
    name: str = "r"
    metadata: dict = field(default_factory=lambda: {"method": "nnclr", "dataset": "cifar10", "seed": "7"})

    def default_output_dir(self, output):
        return Path(output)


@pytest.mark.parametrize(
    ("dataset", "several", "title"),
    [("cifar10", False, "b, nnclr"), ("digits", False, "b, nnclr on cifar10"), ("digits", True, "b, r on cifar10")],
)
def test_pretrained_info_names_the_data_set_of_the_pretraining_where_it_differs(capsys, dataset, several, title):
    info = pretrained_info("b", None, dataset, FakeWeights(), "out", several)
    assert (info.title, info.method, info.pretrained_on) == (title, "nnclr", "cifar10")
    assert {*info.label.replace(" on cifar10", "").split(", ")} == {"b", "nnclr", "seed 7", "r"}
    assert ("was pretrained on cifar10" in capsys.readouterr().out) == (dataset != "cifar10")


def test_pretrained_info_of_weights_without_metadata():
    assert pretrained_info("b", None, "digits", FakeWeights(metadata={}), "out", False).title == "b, pretrained"
