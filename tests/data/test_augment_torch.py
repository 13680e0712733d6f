"""The batched executor equals torchvision, operation for operation, with the same parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from data import augment_torch
from data.pipelines.torchvision_workers import augment_image, eval_view
from data.sampler import ViewParams, sample
from data.views import ViewSpec
from tests.helpers.networks import batched

N = 24


def images(n=N, h=37, w=52, seed=0):
    """Noise, flat patches, extremes: the pixels on which colour formulas differ."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, h, w), generator=g, dtype=torch.uint8)
    x[:, :, : h // 4] = torch.randint(0, 256, (n, 3, 1, 1), generator=g, dtype=torch.uint8)
    x[:, :, -3:] = x[:, :1, -3:]  # gray
    x[:, :, 0, :4] = torch.tensor([0, 255, 127, 128], dtype=torch.uint8)
    return x


def floats(**shape):
    return images(**shape).float() / 255


def params(spec, n=N, sizes=(37, 52), **fixed):
    p = sample(spec, 1, 2, np.arange(n), 0, np.tile(sizes, (n, 1)))
    for name, value in fixed.items():
        setattr(p, name, np.broadcast_to(value, getattr(p, name).shape).copy())
    return p


OFF = {"jitter": False, "gray": False, "sigma": 0.0, "solarize": False}


@pytest.mark.parametrize("size", [8, 24, 37, 96])
def test_crop_resize_and_flip(size):
    x = images()
    p = params(ViewSpec(size, scale=(0.02, 1.0)), **OFF)
    ours = batched(x, p, ViewSpec(size))
    for i in range(N):
        theirs = TF.resized_crop(x[i].float() / 255, *p.box[i].tolist(), [size, size], antialias=True)
        theirs = TF.horizontal_flip(theirs) if p.flip[i] else theirs
        assert_close(ours[i], theirs, rtol=0, atol=2e-6)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 6), st.integers(0, 11), st.integers(3, 40), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_box(height, width, top, left, size, flip):
    x = images(1)
    p = params(ViewSpec(size), n=1, **OFF)
    p.box, p.flip = np.array([[top, left, height, width]]), np.array([flip])
    theirs = TF.resized_crop(x[0].float() / 255, top, left, height, width, [size, size], antialias=True)
    ours = batched(x, p, ViewSpec(size))[0]
    assert_close(ours, TF.horizontal_flip(theirs) if flip else theirs, rtol=0, atol=2e-6)


COLOR = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]


@pytest.mark.parametrize("op", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_one_colour_property(op):
    strength = 0.5 if op == augment_torch.HUE else 0.9
    names = ["brightness", "contrast", "saturation", "hue"]
    spec = ViewSpec(8, **{name: strength * (name == names[op]) for name in names})
    p = params(spec, jitter=True)
    x = floats()
    ours = augment_torch.jitter(x.clone(), p)
    for i in range(N):
        assert_close(ours[i], COLOR[op](x[i], p.factors[i, op].item()), rtol=0, atol=3e-6)
    assert (ours - x).abs().mean() > 0.01, "nothing happened"


def test_all_colour_properties_in_each_samples_own_order():
    p = params(ViewSpec(8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4))
    assert len({tuple(o) for o in p.order}) > 10
    x = floats()
    ours = augment_torch.jitter(x.clone(), p)
    for i in range(N):
        theirs = x[i]
        for op in p.order[i] if p.jitter[i] else ():
            theirs = COLOR[op](theirs, p.factors[i, op].item())
        assert_close(ours[i], theirs, rtol=0, atol=1e-5)


def test_hue_turns_all_the_way_round():
    x = floats()
    for shift in (-0.5, -0.1, 0.0, 0.25, 0.5):
        assert_close(augment_torch.shift_hue(x, torch.full((N,), shift)), TF.adjust_hue(x, shift), rtol=0, atol=3e-6)
    red_green_blue = torch.eye(3).view(3, 3, 1, 1)
    turned = augment_torch.shift_hue(red_green_blue, torch.full((3,), 1 / 3))
    assert_close(turned, red_green_blue.roll(-1, dims=0), rtol=0, atol=1e-6)


def test_gray():
    p = params(ViewSpec(8), jitter=False, sigma=0.0, solarize=False, gray=np.arange(N) % 2 == 0)
    x = floats()
    ours = augment_torch.color(x.clone(), p, taps=3)
    for i in range(N):
        assert_close(ours[i], TF.rgb_to_grayscale(x[i], 3) if i % 2 == 0 else x[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("taps", [3, 9, 23])
def test_blur_with_one_sigma_per_sample(taps):
    x, sigma = floats(), torch.linspace(0.1, 2.0, N)
    ours = augment_torch.blur(x, sigma, taps)
    for i in range(N):
        assert_close(ours[i], TF.gaussian_blur(x[i], [taps, taps], [sigma[i].item()] * 2), rtol=0, atol=3e-6)


def test_blur_one_axis_at_a_time_is_torchvisions_blur():
    x = floats(n=1)[0]
    both = TF.gaussian_blur(TF.gaussian_blur(x, [23, 1], [1.3, 1.3]), [1, 23], [1.3, 1.3])
    assert_close(both, TF.gaussian_blur(x, [23, 23], [1.3, 1.3]), rtol=0, atol=2e-6)


def test_solarize():
    p = params(ViewSpec(8), jitter=False, gray=False, sigma=0.0, solarize=np.arange(N) % 2 == 0)
    x = floats()
    ours = augment_torch.color(x.clone(), p, taps=3)
    for i in range(N):
        assert_close(ours[i], TF.solarize(x[i], 128 / 255) if i % 2 == 0 else x[i], rtol=0, atol=1e-6)
    as_bytes = TF.solarize(images()[0], 128).float() / 255
    assert_close(ours[0], as_bytes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [32, 96])
def test_the_whole_view(size):
    """Both executors, every operation on: only the reference's rounding to 8 bits after its crop lies between them."""
    spec = ViewSpec(size, blur=0.5, solarize=0.3)
    x, p = images(), params(spec)
    ours = batched(x, p, spec)
    theirs = torch.stack([augment_image(x[i], p, i, spec) for i in range(N)])
    at_threshold = torch.tensor(p.solarize)[:, None, None, None] & ((theirs - 0.5).abs() < 0.05)
    difference = (ours - theirs).abs().masked_fill(at_threshold, 0)
    assert difference.mean() < 1.5 / 255
    assert difference.quantile(0.999) < 6 / 255


@pytest.mark.parametrize(("h", "w"), [(37, 52), (64, 64), (90, 41)])
@pytest.mark.parametrize("size", [16, 32, 70])
def test_evaluation_view(h, w, size):
    x = images(3, h, w)
    y_axis, x_axis = augment_torch.clean_axes(np.tile((h, w), (3, 1)), size)
    ours = augment_torch.resample(x, y_axis, x_axis, size)
    side = augment_torch.short_side(size)
    theirs = TF.center_crop(TF.resize(x.float() / 255, [side], antialias=True), [size, size])
    assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - eval_view(x[0], size).float() / 255)[0].abs().max() < 1.5 / 255


def test_evaluation_view_of_a_small_image_is_the_image():
    x = images(2, 32, 32)
    ours = augment_torch.resample(x, *augment_torch.clean_axes(np.tile((32, 32), (2, 1)), 32), 32)
    assert_close(ours, x.float() / 255, rtol=0, atol=1e-6)


def test_views_of_a_squeezed_image_keep_their_proportions():
    """A smooth image stored as a square: boxes in original pixels give nearly the view of the original."""
    h, w = 60, 120
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 255, h), torch.linspace(0, 255, w), indexing="ij"))
    x = torch.cat([ramp, ramp[:1].flip(1)])[None].round().byte()
    squeezed = TF.resize(x, [64, 64], antialias=True)
    p = params(ViewSpec(24), n=1, sizes=(h, w), **OFF)
    a = batched(x, p, ViewSpec(24))
    b = batched(squeezed, p, ViewSpec(24), np.array([[64 / h, 64 / w]]))
    assert (a - b).abs().max() < 0.03


def test_rows_are_independent():
    spec = ViewSpec(16, blur=0.5, solarize=0.3)
    x, p = images(), params(spec)
    one = ViewParams(*(getattr(p, f)[5:6] for f in p.__dataclass_fields__))
    whole = batched(x, p, spec)
    assert_close(batched(x[5:6], one, spec)[0], whole[5], rtol=0, atol=1e-6)
