"""The shared operations, as plain functions of numbers and as an executor's own, against other definitions of them."""

import colorsys
from dataclasses import fields

import numpy as np
import pytest
import torch
from numba import typeof
from torchvision.transforms.v2 import functional as TF

from data import augment_numba, augment_torch, pixel_operations
from data.pixel_operations import COLUMNS, SIX, SOLARIZE, TO_GRAY, parameter_rows, specialize
from data.views import ViewSpec
from tests.helpers.executors import params

PIXELS = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.2, 0.7, 0.4),
          (0.9, 0.3, 0.8), (0.6, 0.6, 0.1), (0.1, 0.6, 0.6)]  # fmt: skip


@pytest.mark.parametrize("pixel", PIXELS)
@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.25, 0.5])
def test_shift_hue_is_that_of_the_hsv_cylinder(pixel, shift):
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    expected = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
    assert pixel_operations.shift_hue(*pixel, SIX * shift) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("pixel", PIXELS)
def test_operations_of_one_pixel_are_torchvisions(pixel):
    x = torch.tensor(pixel, dtype=torch.double).view(3, 1, 1)
    gray = pixel_operations.gray(*pixel)
    assert gray == pytest.approx(TF.rgb_to_grayscale(x).item())
    for factor in (0.0, 0.4, 1.0, 1.7):
        brighter = [pixel_operations.blend(channel, factor, 0.0) for channel in pixel]
        assert brighter == pytest.approx(TF.adjust_brightness(x, factor).flatten().tolist())
        purer = [pixel_operations.blend(channel, factor, (1 - factor) * gray) for channel in pixel]
        assert purer == pytest.approx(TF.adjust_saturation(x, factor).flatten().tolist(), abs=1e-6)
    solarized = [pixel_operations.solarize(channel) for channel in pixel]
    assert solarized == pytest.approx(TF.solarize(x, 128 / 255).flatten().tolist())


def test_operations_after_the_jitter_are_applied_where_the_view_has_them():
    row, pixel = [0.0] * COLUMNS, (0.2, 0.7, 0.4)
    assert pixel_operations.before_blur(*pixel, row) == pixel
    assert pixel_operations.after_blur(*pixel, row) == pixel
    row[TO_GRAY] = row[SOLARIZE] = 1.0
    assert pixel_operations.before_blur(*pixel, row) == (pixel_operations.gray(*pixel),) * 3
    assert pixel_operations.after_blur(*pixel, row) == pytest.approx((0.2, 0.3, 0.4))


def test_parameter_rows_hold_every_parameter_but_the_box():
    p = params(ViewSpec(8, blur=0.5, solarize=0.5))
    rows = parameter_rows(p)
    assert rows.shape == (len(p.box), COLUMNS)
    assert np.array_equal(rows[:, pixel_operations.FLIP], p.flip)
    assert np.array_equal(rows[:, pixel_operations.ORDER : pixel_operations.ORDER + 4], p.order)
    assert np.array_equal(rows[:, pixel_operations.FACTORS : pixel_operations.FACTORS + 4], p.factors)
    for column, name in (("JITTER", "jitter"), ("TO_GRAY", "gray"), ("SIGMA", "sigma"), ("SOLARIZE", "solarize")):
        assert np.array_equal(rows[:, getattr(pixel_operations, column)], getattr(p, name))
    named = {"box", "flip", "jitter", "factors", "order", "gray", "sigma", "solarize"}
    assert {field.name for field in fields(p)} == named, "a new parameter needs its column"


@pytest.mark.parametrize("name", ["gray", "blend", "shift_hue", "triangle", "before_blur", "after_blur"])
def test_operations_of_every_executor_give_the_numbers_of_the_plain_ones(name):
    rng = np.random.default_rng(0)
    inputs = {"gray": 3, "blend": 3, "shift_hue": 4, "triangle": 2, "before_blur": 3, "after_blur": 3}[name]
    row = np.ones(COLUMNS)
    more = (row,) if name.endswith("blur") else ()
    on_device = (torch.ones(1, COLUMNS),) if more else ()
    for values in rng.random((20, inputs)).astype(np.float32):
        expected = np.atleast_1d(getattr(pixel_operations, name)(*map(float, values), *more))
        compiled = getattr(augment_numba, name)(*values, *more)
        tensors = getattr(augment_torch.operations, name)(*torch.tensor(values).view(-1, 1, 1, 1), *on_device)
        assert np.atleast_1d(compiled) == pytest.approx(expected, abs=1e-6)
        assert torch.stack([*tensors]).flatten().numpy() == pytest.approx(expected, abs=1e-6)


def test_specialize_keeps_the_precision_of_its_constants():
    """A constant in double precision would turn every result into one, at half the speed."""
    x = np.float32(0.3)
    for name, arguments in (("gray", (x, x, x)), ("blend", (x, x, x)), ("shift_hue", (x, x, x, x))):
        function = getattr(augment_numba, name)
        function(*arguments)
        found = function.overloads[tuple(typeof(a) for a in arguments)].signature.return_type
        assert "float32" in str(found), f"{name} gives {found}"


def test_specialize_refuses_an_executor_without_one_of_the_primitives():
    with pytest.raises(AssertionError, match=r"without \['select'\]"):
        specialize(dict.fromkeys(set(pixel_operations.PRIMITIVES) - {"select"}), lambda x: x, lambda f: f)


def test_compiled_loops_are_compiled_anew_when_the_shared_operations_change():
    """numba keeps machine code under the name of a function and looks at the function's own file alone."""
    assert augment_numba.SHARED in augment_numba._augment_inplace.py_func.__qualname__
