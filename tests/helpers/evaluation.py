"""Features, networks and targets for tests of evaluations."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.images import ArrayImages
from data.pipelines.choose import build_pipeline
from data.views import ViewSpec
from evaluation.features import FeatureSet
from evaluation.target import EvaluationTarget, NetworkInfo
from tests.helpers.images import read

CPU = torch.device("cpu")


def blobs(n: int = 60, d: int = 5, classes: int = 3, seed: int = 0, unknown: int = 0) -> FeatureSet:
    """Random features whose classes overlap; the first `unknown` rows have no label."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, d, generator=g) + 1.5 * torch.eye(classes, d)[y]
    y[:unknown] = -1
    return FeatureSet(x, y)


class Position(nn.Module):
    """Features that identify an image: the mean and the corner of its pixels."""

    def forward(self, x):
        return torch.stack([x.mean(dim=(1, 2, 3)), x[:, 0, 0, 0]], dim=1)


class Pixels(nn.Module):
    """Features of eight pixels of the middle column."""

    def forward(self, x):
        return x[:, 0, ::4, 16]


def digits_module(batch_size: int = 100, images: int | None = None):
    """The data module of the digits, or of the first training images, with two views of 32 pixels."""
    data = read()
    if images is not None:
        train = data.train
        data = dataclasses.replace(data, train=ArrayImages(train.pixels[:images], train.labels[:images]))
    return build_pipeline("memory", data, [ViewSpec(32, count=2)], batch_size, 0, 0, None, "cpu")


def target_of(network: nn.Module, folder: Path, title: str = "net", images: int | None = None, **info: Any):
    """A target on the digits, or on the first training images."""
    module = digits_module(images=images)
    facts = NetworkInfo(title, "b", weights="w.pth", default_output_dir=folder / "run", **info)
    crops = module.with_views([ViewSpec(32, jitter=0.0)])
    return EvaluationTarget(network, facts, "digits", module, crops, CPU, folder)
