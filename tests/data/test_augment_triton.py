"""The kernels equal the batched executor and torchvision: in Triton's interpreter where there is no CUDA device."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from data.augment_torch import blur, crop_axes, standardize_images
from data.datasets import IMAGENET_MEAN, IMAGENET_STD
from data.pixel_operations import HUE
from data.views import ViewSpec
from tests.helpers.executors import COLOR, OFF, images, params
from tests.helpers.networks import batched

triton = pytest.importorskip("triton", reason="Triton is not installed; torch brings it on Linux")
from data import augment_triton  # noqa: E402  # it needs Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = pytest.mark.skipif(DEVICE.type == "cuda", reason="looks into the interpreter, which is for the CPU")
N = 6
IDENTITY = ((0.0,) * 3, (1.0,) * 3)  # a mean and a deviation that change nothing
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.4}


def to_make(x, p, spec, index=None, ratio=None):
    """Views of the images x, as the executor takes them."""
    index = np.arange(len(x)) if index is None else index
    y, x_axis = crop_axes(p.box, spec.size)
    if ratio is not None:
        y, x_axis = y.stretched(ratio[:, 0]), x_axis.stretched(ratio[:, 1])
    return augment_triton.Views(x.to(DEVICE), index, p, y, x_axis, spec.size, spec.blur_taps)


def made(*views, norm=IDENTITY, dtype=torch.float32):
    return [view.cpu() for view in augment_triton.augment_views(views, *norm, dtype)]


def whole(p, size):
    """The parameters with boxes that take the whole of images of `size` pixels."""
    p.box = np.tile((0, 0, size, size), (len(p.box), 1))
    return p


def no_threshold(p, expected):
    """Where solarize cannot turn a rounding into a step."""
    return ~(torch.tensor(p.solarize)[:, None, None, None] & ((expected - 0.5).abs() < 1e-3))


@pytest.mark.parametrize("size", [8, 13, 24])
def test_views_are_cropped_resized_and_flipped_as_torchvision_does(size):
    spec = ViewSpec(size, scale=(0.02, 1.0))
    x, p = images(N), params(spec, N, **OFF)
    (found,) = made(to_make(x, p, spec))
    for i in range(N):
        expected = TF.resized_crop(x[i].float() / 255, *p.box[i].tolist(), [size, size], antialias=True)
        assert_close(found[i], TF.horizontal_flip(expected) if p.flip[i] else expected, rtol=0, atol=5e-6)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 6), st.integers(0, 11), st.integers(3, 16), st.booleans())
@settings(max_examples=15, deadline=None)
def test_views_are_cropped_from_any_box(height, width, top, left, size, flip):
    spec = ViewSpec(size)
    x, p = images(1), params(spec, n=1, **OFF)
    p.box, p.flip = np.array([[top, left, height, width]]), np.array([flip])
    expected = TF.resized_crop(x[0].float() / 255, top, left, height, width, [size, size], antialias=True)
    (found,) = made(to_make(x, p, spec))
    assert_close(found[0], TF.horizontal_flip(expected) if flip else expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("op", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_views_have_one_colour_property_changed_as_by_torchvision(op):
    strength = 0.5 if op == HUE else 0.9
    x, p = images(N, 10, 10), whole(params(ViewSpec(10), N, **OFF | {"jitter": True, "flip": False}), 10)
    p.factors[:] = (1, 1, 1, 0)
    p.factors[:, op] = np.linspace(-1, 1, N) * strength + (op != HUE)
    (found,) = made(to_make(x, p, ViewSpec(10)))
    for i in range(N):
        assert_close(found[i], COLOR[op](x[i].float() / 255, p.factors[i, op].item()), rtol=0, atol=4e-6)
    assert (found - x.float() / 255).abs().mean() > 0.01, "nothing happened"


def test_views_have_their_colour_properties_changed_each_in_its_own_order():
    """All 24 orders: the contrast, whose mean is of the whole view, comes first, second, third and last."""
    orders = np.array(list(permutations(range(4))))
    x, p = images(24, 6, 6), whole(params(ViewSpec(6, **STRONG), 24, **OFF | {"jitter": True, "flip": False}), 6)
    p.order = orders
    (found,) = made(to_make(x, p, ViewSpec(6)))
    for i in range(24):
        expected = x[i].float() / 255
        for op in orders[i]:
            expected = COLOR[op](expected, p.factors[i, op].item())
        assert_close(found[i], expected, rtol=0, atol=1e-5)


def test_views_are_gray_and_solarized_where_they_are_to_be():
    even, third = np.arange(N) % 2 == 0, np.arange(N) % 3 == 0
    off = OFF | {"flip": False, "gray": even, "solarize": third}
    x, p = images(N, 10, 10), whole(params(ViewSpec(10), N, **off), 10)
    (found,) = made(to_make(x, p, ViewSpec(10)))
    for i in range(N):
        expected = x[i].float() / 255
        expected = TF.rgb_to_grayscale(expected, 3) if even[i] else expected
        assert_close(found[i], TF.solarize(expected, 128 / 255) if third[i] else expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "taps"), [(10, 3), (24, 9), (24, 23)])
def test_views_are_blurred_each_with_its_own_sigma(size, taps):
    sigma = np.array([0.0, 0.1, 0.7, 0.0, 2.0, 1.3])
    x, p = images(N, size, size), whole(params(ViewSpec(size), N, **OFF | {"flip": False, "sigma": sigma}), size)
    (found,) = made(to_make(x, p, ViewSpec(size))._replace(taps=taps))
    expected = x.float() / 255
    on = sigma > 0
    expected[on] = blur(expected[on], torch.tensor(sigma[on], dtype=torch.float32), taps)
    assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("block", [augment_triton.BLOCK, 1024])
def test_whole_views_equal_those_of_the_batched_executor(block, monkeypatch):
    """Two sizes, one of several programs a view, and three views of an image: all operations, in one call."""
    monkeypatch.setattr(augment_triton, "BLOCK", block)
    large, small = ViewSpec(20, blur=0.5, solarize=0.3, **STRONG), ViewSpec(11, (0.05, 0.3), blur=0.5, **STRONG)
    x, norm = images(N), (IMAGENET_MEAN, IMAGENET_STD)
    drawn = [(spec, params(spec, N, seed=seed)) for seed, spec in enumerate((large, small, large))]
    found = made(*[to_make(x, p, spec) for spec, p in drawn], norm=norm)
    for view, (spec, p) in zip(found, drawn, strict=True):
        expected = batched(x, p, spec)
        difference = (view - standardize_images(expected.clone(), *norm)).abs()
        assert (difference * no_threshold(p, expected)).max() < 3e-5
        assert (p.sigma > 0).any()
        assert difference.mean() < 2e-6


def test_views_take_the_images_of_their_index_and_squeezed_ones_in_their_proportions():
    spec, index = ViewSpec(9, scale=(0.3, 1.0)), np.array([4, 0, 4])
    x = TF.resize(images(N, 6, 8), [30, 40], antialias=True)
    p = params(spec, n=3, sizes=(30, 40), **OFF)
    (found,) = made(to_make(x, p, spec, index))
    assert_close(found, batched(x[index], p, spec), rtol=0, atol=5e-6)
    squeezed, ratio = TF.resize(x, [20, 20], antialias=True), np.tile([20 / 30, 20 / 40], (3, 1))
    (found,) = made(to_make(squeezed, p, spec, index, ratio))
    assert_close(found, batched(squeezed[index], p, spec, ratio), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_views_are_in_the_precision_of_the_training_and_channels_last(dtype):
    spec = ViewSpec(8, blur=0.5)
    x, p = images(N, 10, 10), params(spec, N, (10, 10))
    (exact,), (found,) = (made(to_make(x, p, spec), dtype=t) for t in (torch.float32, dtype))
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3 * torch.finfo(dtype).eps)


def test_compiles_says_why_triton_cannot_start_kernels(monkeypatch, capsys):
    def broken():
        raise RuntimeError("Failed to find C compiler.\nPlease specify")

    monkeypatch.setattr(augment_triton, "_crop", triton.JITFunction(augment_triton._crop.fn))
    monkeypatch.setattr(type(triton.runtime.driver), "active", property(lambda self: broken()))
    augment_triton.compiles.cache_clear()
    assert [augment_triton.compiles(), augment_triton.compiles()] == [False, False]
    augment_triton.compiles.cache_clear()
    assert capsys.readouterr().out.count("Triton starts no kernels (Failed to find C compiler.); it needs") == 1


class Counting:
    """A kernel that counts its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches[self.kernel.__name__] += 1
        return self.kernel[grid]


@pytest.fixture
def launches(monkeypatch):
    """kernel -> launches, and "upload" -> copies of parameters to the device."""
    count = Counter()
    for name in ("_crop", "_color", "_blur_columns", "_blur_rows"):
        monkeypatch.setattr(augment_triton, name, Counting(getattr(augment_triton, name), count))
    upload = augment_triton.upload

    def counted(*args):
        count["upload"] += 1
        return upload(*args)

    monkeypatch.setattr(augment_triton, "upload", counted)
    return count


def test_views_of_two_sizes_take_eight_launches_and_one_upload(launches):
    large, small = ViewSpec(8, blur=1.0), ViewSpec(5, blur=1.0)
    x = images(2, 10, 10)
    made(*[to_make(x, params(spec, 2, (10, 10)), spec) for spec in (large, large, small, small, small, small)])
    assert launches == {"_crop": 2, "_color": 2, "_blur_columns": 2, "_blur_rows": 2, "upload": 1}


def test_views_without_a_blur_take_two_launches(launches):
    spec = ViewSpec(8)
    made(*[to_make(images(2, 10, 10), params(spec, 2, (10, 10)), spec)] * 2)
    assert launches == {"_crop": 1, "_color": 1, "upload": 1}


@INTERPRETED
def test_bytes_per_view_are_those_that_the_kernels_touch(monkeypatch):
    """Every address that a kernel reads or writes counts once per kernel, as caches make it."""
    from triton.runtime import interpreter

    builder, touched, total = interpreter.InterpreterBuilder, {}, []

    def watched(kind, original):
        def call(self, pointers, *args):
            mask = args[0] if kind == "read" else args[1]
            addresses = np.broadcast_to(pointers.data, np.broadcast(pointers.data, mask.data).shape)[mask.data]
            width = pointers.get_element_ty().primitive_bitwidth // 8
            touched.update(((kind, address), width) for address in addresses.ravel().tolist())
            return original(self, pointers, *args)

        return call

    for kind, name in (("read", "create_masked_load"), ("write", "create_masked_store")):
        monkeypatch.setattr(builder, name, watched(kind, getattr(builder, name)))
    run = interpreter.GridExecutor.__call__

    def of_one_kernel(*args, **kwargs):
        touched.clear()
        run(*args, **kwargs)
        total.append(sum(touched.values()))

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", of_one_kernel)
    spec, side = ViewSpec(24), 26
    p = params(spec, 4, **OFF | {"jitter": True, "sigma": np.array([1.0, 0.0, 0.0, 1.0])})
    p.box = np.tile((0, 0, side, side), (4, 1))
    made(to_make(images(4, side, side), p, spec), dtype=torch.bfloat16)
    counted = augment_triton.bytes_per_view((side, side), 24, 0.5, torch.bfloat16)
    assert len(total) == 4
    assert sum(total) / 4 == pytest.approx(counted, rel=0.02)


def test_bytes_per_view_of_224_pixels_stay_below_three_megabytes():
    blurred = [augment_triton.bytes_per_view((256, 256), 224, share, torch.bfloat16) / 1e6 for share in (0, 0.5, 1)]
    assert blurred == pytest.approx([1.70, 2.91, 4.11], abs=0.01)
