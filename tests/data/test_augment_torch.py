"""The batched executor equals torchvision, operation for operation, with the same parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from data import augment_torch
from data.pipelines.torchvision_workers import augment_image
from data.pixel_operations import HUE
from data.sampler import ViewParams
from data.views import ViewSpec
from tests.helpers.executors import COLOR, OFF, N, images, params
from tests.helpers.networks import batched


def floats(**shape):
    return images(**shape).float() / 255


@pytest.mark.parametrize("size", [8, 24, 37, 96])
def test_resample_crops_resizes_and_flips_as_torchvision(size):
    x = images()
    p = params(ViewSpec(size, scale=(0.02, 1.0)), **OFF)
    found = batched(x, p, ViewSpec(size))
    for i in range(N):
        expected = TF.resized_crop(x[i].float() / 255, *p.box[i].tolist(), [size, size], antialias=True)
        expected = TF.horizontal_flip(expected) if p.flip[i] else expected
        assert_close(found[i], expected, rtol=0, atol=2e-6)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 6), st.integers(0, 11), st.integers(3, 40), st.booleans())
@settings(max_examples=40, deadline=None)
def test_resample_takes_any_box(height, width, top, left, size, flip):
    x = images(1)
    p = params(ViewSpec(size), n=1, **OFF)
    p.box, p.flip = np.array([[top, left, height, width]]), np.array([flip])
    expected = TF.resized_crop(x[0].float() / 255, top, left, height, width, [size, size], antialias=True)
    found = batched(x, p, ViewSpec(size))[0]
    assert_close(found, TF.horizontal_flip(expected) if flip else expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("op", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_jitter_of_one_colour_property_is_torchvisions(op):
    strength = 0.5 if op == HUE else 0.9
    names = ["brightness", "contrast", "saturation", "hue"]
    spec = ViewSpec(8, **{name: strength * (name == names[op]) for name in names})
    p = params(spec, jitter=True)
    x = floats()
    found = augment_torch.jitter(x.clone(), p)
    for i in range(N):
        assert_close(found[i], COLOR[op](x[i], p.factors[i, op].item()), rtol=0, atol=3e-6)
    assert (found - x).abs().mean() > 0.01, "nothing happened"


def test_jitter_applies_colour_properties_in_the_order_of_each_sample():
    p = params(ViewSpec(8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4))
    assert len({tuple(o) for o in p.order}) > 10
    x = floats()
    found = augment_torch.jitter(x.clone(), p)
    for i in range(N):
        expected = x[i]
        for op in p.order[i] if p.jitter[i] else ():
            expected = COLOR[op](expected, p.factors[i, op].item())
        assert_close(found[i], expected, rtol=0, atol=1e-5)


def test_shift_hue_covers_the_full_circle():
    x = floats()
    for shift in (-0.5, -0.1, 0.0, 0.25, 0.5):
        assert_close(augment_torch.shift_hue(x, torch.full((N,), shift)), TF.adjust_hue(x, shift), rtol=0, atol=3e-6)
    red_green_blue = torch.eye(3).view(3, 3, 1, 1)
    rotated = augment_torch.shift_hue(red_green_blue, torch.full((3,), 1 / 3))
    assert_close(rotated, red_green_blue.roll(-1, dims=0), rtol=0, atol=1e-6)


def test_apply_color_augmentations_makes_torchvisions_gray():
    p = params(ViewSpec(8), jitter=False, sigma=0.0, solarize=False, gray=np.arange(N) % 2 == 0)
    x = floats()
    found = augment_torch.apply_color_augmentations(x.clone(), p, taps=3)
    for i in range(N):
        assert_close(found[i], TF.rgb_to_grayscale(x[i], 3) if i % 2 == 0 else x[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("taps", [3, 9, 23])
def test_blur_has_one_sigma_per_sample(taps):
    x, sigma = floats(), torch.linspace(0.1, 2.0, N)
    found = augment_torch.blur(x, sigma, taps)
    for i in range(N):
        assert_close(found[i], TF.gaussian_blur(x[i], [taps, taps], [sigma[i].item()] * 2), rtol=0, atol=3e-6)


def test_gaussian_blur_of_torchvision_is_separable():
    x = floats(n=1)[0]
    both = TF.gaussian_blur(TF.gaussian_blur(x, [23, 1], [1.3, 1.3]), [1, 23], [1.3, 1.3])
    assert_close(both, TF.gaussian_blur(x, [23, 23], [1.3, 1.3]), rtol=0, atol=2e-6)


def test_apply_color_augmentations_solarizes_as_torchvision():
    p = params(ViewSpec(8), jitter=False, gray=False, sigma=0.0, solarize=np.arange(N) % 2 == 0)
    x = floats()
    found = augment_torch.apply_color_augmentations(x.clone(), p, taps=3)
    for i in range(N):
        assert_close(found[i], TF.solarize(x[i], 128 / 255) if i % 2 == 0 else x[i], rtol=0, atol=1e-6)
    as_bytes = TF.solarize(images()[0], 128).float() / 255
    assert_close(found[0], as_bytes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [32, 96])
def test_whole_views_agree_with_the_reference(size):
    """Every operation is on: only the reference's rounding to 8 bits after its crop lies between the executors."""
    spec = ViewSpec(size, blur=0.5, solarize=0.3)
    x, p = images(), params(spec)
    found = batched(x, p, spec)
    expected = torch.stack([augment_image(x[i], p, i, spec) for i in range(N)])
    at_threshold = torch.tensor(p.solarize)[:, None, None, None] & ((expected - 0.5).abs() < 0.05)
    difference = (found - expected).abs().masked_fill(at_threshold, 0)
    assert difference.mean() < 1.5 / 255
    assert difference.quantile(0.999) < 6 / 255


def test_resample_of_a_squeezed_image_keeps_the_proportions_of_its_box():
    """A smooth image stored as a square: boxes in original pixels give nearly the view of the original."""
    h, w = 60, 120
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 255, h), torch.linspace(0, 255, w), indexing="ij"))
    x = torch.cat([ramp, ramp[:1].flip(1)])[None].round().byte()
    squeezed = TF.resize(x, [64, 64], antialias=True)
    p = params(ViewSpec(24), n=1, sizes=(h, w), **OFF)
    a = batched(x, p, ViewSpec(24))
    b = batched(squeezed, p, ViewSpec(24), np.array([[64 / h, 64 / w]]))
    assert (a - b).abs().max() < 0.03


def test_rows_of_a_batch_are_independent():
    spec = ViewSpec(16, blur=0.5, solarize=0.3)
    x, p = images(), params(spec)
    one = ViewParams(*(getattr(p, f)[5:6] for f in p.__dataclass_fields__))
    whole = batched(x, p, spec)
    assert_close(batched(x[5:6], one, spec)[0], whole[5], rtol=0, atol=1e-6)


@given(
    pixels=st.integers(1, 300),
    stored=st.integers(1, 256),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_box_of_a_squeezed_image_holds_the_middle_of_a_stored_pixel(pixels, stored, ends):
    low = min(int(ends[0] * pixels), pixels - 1)
    length = max(1, int(ends[1] * (pixels - low)))
    y, _ = augment_torch.crop_axes(np.array([[low, 0, length, 1]]), 16)
    found = y.stretched(np.array([stored / pixels]))
    middles = np.arange(stored) + 0.5
    assert ((middles > found.low) & (middles < found.high)).any()
    assert found.low >= 0
    assert found.high <= stored + 1e-9
    weights = augment_torch.weights(found, stored, 16, None, torch.device("cpu"))
    assert_close(weights.sum(dim=2), torch.ones(1, 16))
