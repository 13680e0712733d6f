"""The compiled executor agrees with the batched one, view by view, and so with torchvision."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from data import augment_numba
from data.augment_torch import apply_color_augmentations, crop_axes
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.pixel_operations import HUE
from data.sampler import sample
from data.views import ViewSpec
from tests.helpers.executors import COLOR, OFF, N, images, params
from tests.helpers.networks import batched

IDENTITY = ((0.0,) * 3, (1.0,) * 3)  # a mean and a deviation that change nothing


def augmented_images(x, p, spec, norm=IDENTITY, axes=None, index=None):
    index = np.arange(len(x)) if index is None else index
    out = np.full((len(index), 3, spec.size, spec.size), np.nan, np.float32)
    augment_numba.augment_images(
        x.numpy(), index, *(axes or crop_axes(p.box, spec.size)), p, spec.blur_taps, *norm, out
    )
    return torch.from_numpy(out)


def augmented_crops(views, p, spec):
    out = np.full((len(views), 3, spec.size, spec.size), np.nan, np.float32)
    rows = [v.permute(1, 2, 0).contiguous().numpy() for v in views]
    augment_numba.augment_crops(rows, p, spec.blur_taps, *IDENTITY, out)
    return torch.from_numpy(out)


@pytest.mark.parametrize("size", [8, 24, 37, 96, 224])
def test_augment_images_crops_as_torchvision(size):
    spec = ViewSpec(size, scale=(0.02, 1.0))
    x, p = images(), params(spec, **OFF)
    found = augmented_images(x, p, spec)
    for i in range(N):
        expected = TF.resized_crop(x[i].float() / 255, *p.box[i].tolist(), [size, size], antialias=True)
        assert_close(found[i], TF.horizontal_flip(expected) if p.flip[i] else expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("op", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_augment_crops_changes_one_colour_property_as_torchvision(op):
    strength = 0.5 if op == HUE else 0.9
    factors = np.linspace(-strength, strength, N) if op == HUE else np.linspace(1 - strength, 1 + strength, N)
    p = params(ViewSpec(24), jitter=True, gray=False, sigma=0.0, solarize=False, flip=False)
    p.factors[:] = (1, 1, 1, 0)
    p.factors[:, op] = factors
    x = images(h=24, w=24)
    found = augmented_crops(x, p, ViewSpec(24))
    for i in range(N):
        assert_close(found[i], COLOR[op](x[i].float() / 255, factors[i]), rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", [16, 40, 100])
def test_augment_images_agrees_with_the_batched_executor(size):
    spec = ViewSpec(size, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4, blur=0.7, solarize=0.3)
    x, p = images(), params(spec)
    expected = batched(x, p, spec)
    found = augmented_images(x, p, spec)
    near = torch.tensor(p.solarize)[:, None, None, None] & ((expected - 0.5).abs() < 1e-3)
    assert (found - expected).abs().masked_fill(near, 0).max() < 8e-5
    uncoloured = batched(x, params(spec, **OFF), spec)
    assert (found - uncoloured).abs().mean() > 0.1, "nothing happened"


def test_augment_crops_does_what_follows_the_crop():
    spec = ViewSpec(40, brightness=0.8, hue=0.4, blur=0.7, solarize=0.3)
    x = images(h=40, w=40)
    p = params(spec, sizes=(40, 40))
    found = augmented_crops(x, p, spec)
    flipped = torch.where(torch.tensor(p.flip)[:, None, None, None], x.flip(3), x).float() / 255
    expected = apply_color_augmentations(flipped, p, spec.blur_taps)
    near = torch.tensor(p.solarize)[:, None, None, None] & ((expected - 0.5).abs() < 1e-3)
    assert (found - expected).abs().masked_fill(near, 0).max() < 8e-5


def test_augment_images_takes_the_images_of_its_index_and_normalizes_them():
    spec, index = ViewSpec(20), np.array([5, 0, 5, 17])
    x = images()
    p = sample(spec, 1, 2, index, 0, np.tile((37, 52), (4, 1)))
    found = augmented_images(x, p, spec, (IMAGENET_MEAN, IMAGENET_STD), index=index)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert_close(found, (batched(x[index], p, spec) - mean) / std, rtol=0, atol=1e-4)


def test_augment_images_of_squeezed_images_gives_the_views_of_the_originals():
    x = TF.resize(images(4, 6, 8), [90, 120], antialias=True)
    squeezed = TF.resize(x, [64, 64], antialias=True)
    spec = ViewSpec(24, scale=(0.3, 1.0))
    p = params(spec, n=4, sizes=(90, 120), **OFF)
    y, x_axis = crop_axes(p.box, 24)
    axes = (y.stretched(np.full(4, 64 / 90)), x_axis.stretched(np.full(4, 64 / 120)))
    assert (augmented_images(squeezed, p, spec, axes=axes) - batched(x, p, spec)).abs().mean() < 0.03


@pytest.mark.parametrize("shape", [(1, 600), (600, 1)])
def test_views_of_very_long_images_that_are_stored_as_squares_are_finite_and_agree(shape):
    h, w = shape
    x = torch.arange(h * w).mul(255).div(h * w).byte().view(1, 1, h, w).repeat(8, 3, 1, 1)
    squeezed = TF.resize(x, [256, 256], antialias=True)
    spec = ViewSpec(224)
    p = params(spec, n=8, sizes=shape, **OFF)
    ratio = np.tile([256 / h, 256 / w], (8, 1))
    expected = batched(squeezed, p, spec, ratio)
    assert expected.isfinite().all()
    y, x_axis = crop_axes(p.box, 224)
    axes = (y.stretched(ratio[:, 0]), x_axis.stretched(ratio[:, 1]))
    assert_close(augmented_images(squeezed, p, spec, axes=axes), expected, rtol=0, atol=2e-5)
    assert (expected - batched(x, p, spec)).abs().max() < 0.01, "the views of the original"
