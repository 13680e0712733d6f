"""The augment_numba executor is the batched one, view by view, and with it torchvision."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from data import augment_numba
from data.augment_torch import HUE, apply_color_augmentations, crop_axes, eval_axes, resample
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.sampler import sample
from data.views import ViewSpec
from tests.data.test_augment import COLOR, OFF, N, images, params
from tests.helpers.networks import batched

PLAIN = ((0.0,) * 3, (1.0,) * 3)  # a mean and a deviation that change nothing


def drawn(x, p, spec, norm=PLAIN, axes=None, index=None):
    index = np.arange(len(x)) if index is None else index
    out = np.full((len(index), 3, spec.size, spec.size), np.nan, np.float32)
    taps = spec.blur_taps if p else 1
    augment_numba.draw(x.numpy(), index, *(axes or crop_axes(p.box, spec.size)), p, taps, *norm, out)
    return torch.from_numpy(out)


def finished(views, p, spec):
    out = np.full((len(views), 3, spec.size, spec.size), np.nan, np.float32)
    rows = [v.permute(1, 2, 0).contiguous().numpy() for v in views]
    augment_numba.finalize_batch(rows, p, spec.blur_taps, *PLAIN, out)
    return torch.from_numpy(out)


@pytest.mark.parametrize("size", [8, 24, 37, 96, 224])
def test_crops_are_torchvisions(size):
    spec = ViewSpec(size, scale=(0.02, 1.0))
    x, p = images(), params(spec, **OFF)
    ours = drawn(x, p, spec)
    for i in range(N):
        theirs = TF.resized_crop(x[i].float() / 255, *p.box[i].tolist(), [size, size], antialias=True)
        assert_close(ours[i], TF.horizontal_flip(theirs) if p.flip[i] else theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("op", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_one_colour_property_is_torchvisions(op):
    strength = 0.5 if op == HUE else 0.9
    factors = np.linspace(-strength, strength, N) if op == HUE else np.linspace(1 - strength, 1 + strength, N)
    p = params(ViewSpec(24), jitter=True, gray=False, sigma=0.0, solarize=False, flip=False)
    p.factors[:] = (1, 1, 1, 0)
    p.factors[:, op] = factors
    x = images(h=24, w=24)
    ours = finished(x, p, ViewSpec(24))
    for i in range(N):
        assert_close(ours[i], COLOR[op](x[i].float() / 255, factors[i]), rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", [16, 40, 100])
def test_whole_views_are_those_of_the_batched_executor(size):
    spec = ViewSpec(size, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4, blur=0.7, solarize=0.3)
    x, p = images(), params(spec)
    theirs = batched(x, p, spec)
    ours = drawn(x, p, spec)
    near = torch.tensor(p.solarize)[:, None, None, None] & ((theirs - 0.5).abs() < 1e-3)
    assert (ours - theirs).abs().masked_fill(near, 0).max() < 8e-5
    plain = batched(x, params(spec, **OFF), spec)
    assert (ours - plain).abs().mean() > 0.1, "nothing happened"


def test_finishing_a_crop_is_the_rest_of_drawing_a_view():
    spec = ViewSpec(40, brightness=0.8, hue=0.4, blur=0.7, solarize=0.3)
    x = images(h=40, w=40)
    p = params(spec, sizes=(40, 40))
    ours = finished(x, p, spec)
    turned = torch.where(torch.tensor(p.flip)[:, None, None, None], x.flip(3), x).float() / 255
    theirs = apply_color_augmentations(turned, p, spec.blur_taps)
    near = torch.tensor(p.solarize)[:, None, None, None] & ((theirs - 0.5).abs() < 1e-3)
    assert (ours - theirs).abs().masked_fill(near, 0).max() < 8e-5


def test_each_view_is_of_the_image_that_was_asked_for_and_normalized():
    spec, index = ViewSpec(20), np.array([5, 0, 5, 17])
    x = images()
    p = sample(spec, 1, 2, index, 0, np.tile((37, 52), (4, 1)))
    ours = drawn(x, p, spec, (IMAGENET_MEAN, IMAGENET_STD), index=index)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert_close(ours, (batched(x[index], p, spec) - mean) / std, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("h", "w", "size"), [(37, 52, 16), (90, 41, 70), (32, 32, 32)])
def test_clean_views(h, w, size):
    x = images(3, h, w)
    axes = eval_axes(np.tile((h, w), (3, 1)), size)
    assert_close(drawn(x, None, ViewSpec(size), axes=axes), resample(x, *axes, size), rtol=0, atol=2e-5)


def test_a_squeezed_image_gives_the_views_of_the_original():
    x = TF.resize(images(4, 6, 8), [90, 120], antialias=True)
    squeezed = TF.resize(x, [64, 64], antialias=True)
    spec = ViewSpec(24, scale=(0.3, 1.0))
    p = params(spec, n=4, sizes=(90, 120), **OFF)
    y, x_axis = crop_axes(p.box, 24)
    axes = (y.stretched(np.full(4, 64 / 90)), x_axis.stretched(np.full(4, 64 / 120)))
    assert (drawn(squeezed, p, spec, axes=axes) - batched(x, p, spec)).abs().mean() < 0.03
