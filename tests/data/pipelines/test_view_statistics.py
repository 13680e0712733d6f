"""Finished views of every pipeline are distributed as the views that torchvision's random transforms make.

Everything is measured in pixels of finished views, so that nothing between the sampler and the batch is left out.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from data.datasets import IMAGENET_MEAN, IMAGENET_STD, read_dataset
from data.views import SIGMA, ViewSpec
from tests.helpers.pipelines import EVERY_PIPELINE, build, training_batches

H, W, SIZE, FINE, IMAGES = 48, 64, 16, 32, 200
NOTHING = {"flip": 0.0, "jitter": 0.0, "gray": 0.0}
ONLY_JITTER = NOTHING | {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def ramps(i):
    """Red encodes the column of a pixel, green its row."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 4, y * 5, x * 0], axis=2)


def edge(i):
    """Dark on the left, bright on the right; no larger than a view, so that no pipeline keeps it smaller."""
    return np.repeat(np.where(np.arange(FINE) < FINE // 2, 40, 215)[None, :, None], FINE, axis=0).repeat(3, axis=2)


def reddish(i):
    return np.full((H, W, 3), (150, 60, 60))


def texture(i):
    rng = np.random.default_rng(i)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.array(small.resize((W, H), Image.Resampling.BILINEAR))


def places(x):
    """Area, aspect, column and row of the crop, and whether it was flipped."""
    r, g = x[:, 0].mean(axis=1) * 255 / 4, x[:, 1].mean(axis=2) * 255 / 5  # (N, S) columns, (N, S) rows
    width, height = (abs(a[:, -2] - a[:, 1]) * SIZE / (SIZE - 3) for a in (r, g))
    return {
        "area": width * height / (H * W),
        "aspect": width / height,
        "column": r.mean(axis=1),
        "row": g.mean(axis=1),
        "flip": (r[:, -1] < r[:, 0]).astype(float),
    }


def brightness(x):
    return {"brightness": x.mean(axis=(1, 2, 3))}


def hue(x):
    r, g, b = x.mean(axis=(2, 3)).T
    return {"hue": np.arctan2(3**0.5 * (g - b), 2 * r - g - b)}


def sharpness(x):
    """The steepest step from a column to the next, of views that show the edge."""
    rows = x[:, 0].mean(axis=1)
    seen = rows.max(axis=1) - rows.min(axis=1) > 0.5
    return {"sharpness": abs(np.diff(rows, axis=1)).max(axis=1)[seen]}


def channel_means(x):
    return {"red": x[:, 0].mean(axis=(1, 2)), "green": x[:, 1].mean(axis=(1, 2)), "spread": x.std(axis=(1, 2, 3))}


def crop(size):
    return v2.RandomResizedCrop(size, (0.2, 1.0), antialias=True)


def blur(size):
    return v2.RandomApply([v2.GaussianBlur(ViewSpec(size).blur_taps, SIGMA)], p=0.5)


FULL = [
    crop(SIZE),
    v2.RandomHorizontalFlip(),
    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
    v2.RandomGrayscale(0.2),
    blur(SIZE),
]
CASES = {  # images, view, torchvision's transforms, measurement
    "crops": (ramps, ViewSpec(SIZE, **NOTHING | {"flip": 0.5}), FULL[:2], places),
    "brightness": (reddish, ViewSpec(SIZE, **ONLY_JITTER | {"brightness": 0.4}),
                   [crop(SIZE), v2.ColorJitter(brightness=0.4)], brightness),
    "hue": (reddish, ViewSpec(SIZE, **ONLY_JITTER | {"hue": 0.1}), [crop(SIZE), v2.ColorJitter(hue=0.1)], hue),
    "blur": (edge, ViewSpec(FINE, **NOTHING, blur=0.5), [crop(FINE), blur(FINE)], sharpness),
    "all of it": (texture, ViewSpec(SIZE, blur=0.5), FULL, channel_means),
}  # fmt: skip


@functools.cache
def folder(make):
    root = Path(tempfile.mkdtemp())
    (root / "train").mkdir()
    for i in range(IMAGES):
        Image.fromarray(make(i).astype(np.uint8)).save(root / "train" / f"{i:03}.png")
    return read_dataset("custom", str(root), "train", None)


@functools.cache
def reference_values(case):
    """Measurements of four views of every image by torchvision."""
    make, _, transforms, measure = CASES[case]
    torch.manual_seed(0)
    images = folder(make).train
    draw = v2.Compose([*transforms, v2.ToDtype(torch.float32, scale=True)])
    return measure(torch.stack([draw(images.decode(i)) for i in range(IMAGES) for _ in range(4)]).numpy())


def pipeline_values(name, case, spec):
    """Measurements of two views of every image in two epochs."""
    module = build(name, folder(CASES[case][0]), [spec, spec], batch_size=60)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    views = [v * std + mean for epoch in range(2) for b in training_batches(module, epoch) for v in b.views]
    return CASES[case][3](torch.cat(views).numpy())


def p_value(a, b):
    """Kolmogorov-Smirnov p-value of the hypothesis that both samples have one distribution."""
    return ks_2samp(a, b).pvalue


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_views_are_distributed_as_torchvisions(name, case):
    found, expected = pipeline_values(name, case, CASES[case][1]), reference_values(case)
    for name_of_value, values in found.items():
        assert len(values) > IMAGES
        assert p_value(values, expected[name_of_value]) > 0.002, f"{name_of_value} of {name}"


@pytest.mark.parametrize(
    ("case", "what", "wrong"),
    [
        ("crops", "area", ViewSpec(SIZE, scale=(0.08, 1.0), **NOTHING)),
        ("crops", "flip", ViewSpec(SIZE, **NOTHING)),
        ("brightness", "brightness", ViewSpec(SIZE, **ONLY_JITTER | {"brightness": 0.3})),
        ("hue", "hue", ViewSpec(SIZE, **ONLY_JITTER | {"hue": 0.08})),
        ("blur", "sharpness", ViewSpec(FINE, **NOTHING, blur=0.3)),
        ("all of it", "spread", ViewSpec(SIZE, gray=0.0, contrast=0.2, blur=0.5)),
    ],
)
def test_p_value_reveals_a_wrong_distribution(case, what, wrong):
    assert p_value(pipeline_values("memory", case, wrong)[what], reference_values(case)[what]) < 0.002
