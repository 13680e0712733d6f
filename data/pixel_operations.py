"""Operations on the pixels of a view, each written once, as plain functions of numbers.

`specialize` makes of them the functions of an executor: parts of loops that numba compiles, operations on batches of
tensors, parts of kernels on a GPU. A pixel is three numbers in [0, 1]; `row` holds the parameters of its view
(`parameter_rows`). An executor may have tensors in the place of the numbers, so no operation branches: `select` chooses
between two results.
"""

import math
from collections.abc import Callable, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sampler import ViewParams

RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # torchvision's weights of the channels in gray
ZERO, ONE, TWO, THREE, FOUR, SIX = 0.0, 1.0, 2.0, 3.0, 4.0, 6.0
THRESHOLD = 128 / 255  # from which on a channel is inverted
TINY = 1e-9  # instead of a division by zero

FLIP, JITTER, FACTORS, ORDER, TO_GRAY, SIGMA, SOLARIZE = 0, 1, 2, 6, 10, 11, 12  # columns of `parameter_rows`
COLUMNS = 13  # of them
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0, 1, 2, 3  # the colour properties in FACTORS and ORDER, four columns each
# Columns that are above 0 where the function of that name changes a view.
BEFORE_BLUR, AFTER_BLUR = (TO_GRAY,), (SOLARIZE,)

minimum: Callable[..., float] = min
maximum: Callable[..., float] = max
absolute: Callable[..., float] = abs
floor: Callable[..., float] = math.floor


def parameter_rows(params: ViewParams) -> NDArray:
    """(N, COLUMNS) float64: the parameters of each view but its box as one row of numbers."""
    columns = (params.flip, params.jitter, params.factors, params.order, params.gray, params.sigma, params.solarize)
    return np.column_stack(columns).astype(np.float64)


def select(condition: bool, a: float, b: float) -> float:
    """a where the condition holds, else b."""
    return a if condition else b


def parameter(row: list, column: int) -> float:
    """One parameter of a view."""
    value: float = row[column]
    return value


def clip(x: float) -> float:
    return minimum(maximum(x, ZERO), ONE)


def triangle(distance: float, half: float) -> float:
    """Weight of the filter of antialiased bilinear resizing; `half` is its half-width."""
    return maximum(ONE - absolute(distance) / half, ZERO)


def gray(r: float, g: float, b: float) -> float:
    return RED * r + GREEN * g + BLUE * b


def blend(x: float, factor: float, part: float) -> float:
    """Brightness, contrast or saturation of a channel: factor * x + (1 - factor) * base, clipped.

    part: (1 - factor) * base, with base 0, the mean gray of the view, or the gray of the pixel.
    """
    return clip(factor * x + part)


def shift_hue(r: float, g: float, b: float, sixths: float) -> tuple[float, float, float]:
    """Shift the hue by `sixths` of a sixth of the circle, exactly through HSV, without its branches.

    With v, m the largest and smallest channel of a pixel and c = v - m, the hue in sixths is, up to full circles,
    1 + (g + b - r - m) / c where g >= b and minus that where not: the usual three cases in one. Back from a hue h in
    [0, 6), red is m + c * clip(|h - 3| - 1), green and blue m + c * clip(2 - |h - o|), o = 2 and 4.
    """
    m = minimum(minimum(r, g), b)
    c = maximum(maximum(r, g), b) - m
    h = (g + b - r - m) / maximum(c, TINY) + ONE
    h = select(g >= b, h, -h) + sixths
    h = h - SIX * floor(h / SIX)
    red = m + c * clip(absolute(h - THREE) - ONE)
    green = m + c * clip(TWO - absolute(h - TWO))
    blue = m + c * clip(TWO - absolute(h - FOUR))
    return red, green, blue


def solarize(x: float) -> float:
    return select(x >= THRESHOLD, ONE - x, x)


def before_blur(r: float, g: float, b: float, row: list) -> tuple[float, float, float]:
    """The operations between the jitter and the blur, each where the view has it."""
    on = parameter(row, TO_GRAY) > ZERO
    level = gray(r, g, b)
    return select(on, level, r), select(on, level, g), select(on, level, b)


def after_blur(r: float, g: float, b: float, row: list) -> tuple[float, float, float]:
    """The operations after the blur, each where the view has it."""
    on = parameter(row, SOLARIZE) > ZERO
    return select(on, solarize(r), r), select(on, solarize(g), g), select(on, solarize(b), b)


OPERATIONS = (clip, triangle, gray, blend, shift_hue, solarize, before_blur, after_blur)  # each uses those before it
PRIMITIVES = ("minimum", "maximum", "absolute", "floor", "select", "parameter")


def specialize(
    primitives: Mapping[str, Any], number: Callable[[float], Any], compiled: Callable[[FunctionType], Any]
) -> Any:
    """The operations, and the constants as `number` makes them, as attributes.

    primitives: what the executor has for each of PRIMITIVES, and other names that its functions must see. number: a
    constant, float or int, as the executor wants it (a float in double precision would make every result one).
    compiled: what it makes of a plain function.
    """
    missing = set(PRIMITIVES) - primitives.keys()
    assert not missing, f"an executor without {sorted(missing)}"
    constants = {name: number(value) for name, value in globals().items() if isinstance(value, int | float)}
    scope: dict[str, Any] = {"__name__": __name__, "__builtins__": __builtins__, **constants, **primitives}
    for operation in OPERATIONS:
        copy = FunctionType(operation.__code__, scope, operation.__name__)
        copy.__module__ = __name__
        scope[operation.__name__] = compiled(copy)
    return SimpleNamespace(**constants, **{operation.__name__: scope[operation.__name__] for operation in OPERATIONS})
