"""The executor on a GPU with Triton: four kernels that make all views of one size of a batch, from uint8 pixels.

`_crop` gathers, resamples, flips, applies what comes before the jitter's contrast, and sums up the gray that contrast
needs. `_color` applies the rest up to the blur. `_blur_columns` and `_blur_rows` run over the views that have a blur.
The last kernel of a view normalizes it and writes it in the precision of the training, channels last. The views equal
those of `data.augment_torch`; a pixel is read and written a few times, where tensor operations do it some fifty times.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from data import pixel_operations
from data.augment_torch import Axis, Statistic, Views, upload
from data.pixel_operations import parameter_rows, specialize
from utils.distributed import rank_zero_print

BLOCK = 256  # pixels of a program
# A pixel for each thread: with several, Triton moves them between threads, through barriers, in the innermost loops.
WARPS = BLOCK // 32
# Columns of `pack_parameters` after those of `parameter_rows`: the address of the image, in two columns of which the
# first is even; the axes with start, scale, low and high; how many colour properties come before the contrast; the row
# of the view in the output.
_FREE = pixel_operations.COLUMNS + pixel_operations.COLUMNS % 2
ADDRESS, Y_AXIS, X_AXIS, BEFORE_CONTRAST, OUTPUT, COLUMNS = (tl.constexpr(_FREE + n) for n in (0, 2, 6, 10, 11, 12))


# Functions of their own around Triton's, whose names the interpreter replaces in `tl` alone.
@triton.jit
def minimum(a, b):
    return tl.minimum(a, b)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def floor(x):
    return tl.floor(x)


@triton.jit
def select(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def parameter(row, column):
    return tl.load(row + column)


_operations = specialize(
    {"minimum": minimum, "maximum": maximum, "absolute": absolute, "floor": floor, "select": select,
     "parameter": parameter, "tl": tl},
    number=(lambda x: x) if triton.knobs.runtime.interpret else tl.constexpr,  # 1 - x of a constexpr is compiled only
    compiled=triton.jit,
)  # fmt: skip
blend, gray, shift_hue, triangle = _operations.blend, _operations.gray, _operations.shift_hue, _operations.triangle
before_blur, after_blur = _operations.before_blur, _operations.after_blur
CONTRAST, SATURATION, HUE, SIX = _operations.CONTRAST, _operations.SATURATION, _operations.HUE, _operations.SIX
FLIP, JITTER, FACTORS, ORDER = _operations.FLIP, _operations.JITTER, _operations.FACTORS, _operations.ORDER
SIGMA = _operations.SIGMA


def augment_views(views: Sequence[Views], mean: Statistic, std: Statistic, dtype: torch.dtype) -> list[Tensor]:
    """(N, 3, S, S) for each of `views`, normalized, of type `dtype`, channels last; the host waits for nothing.

    The parameters of all views go to the device in one copy, and views of one size share their kernels.
    """
    device = views[0].pixels.device
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, view in enumerate(views):
        groups.setdefault((view.size, view.taps, *view.pixels.shape[2:]), []).append(number)
    packed = [pack_parameters([views[number] for number in numbers]) for numbers in groups.values()]
    rows = upload(np.concatenate(packed), device)
    out: list[Tensor] = [torch.empty(0)] * len(views)
    with torch.cuda.device_of(rows):  # Triton starts kernels on the current device
        for part, ((size, taps, height, width), numbers) in zip(
            rows.split([len(p) for p in packed]), groups.items(), strict=True
        ):
            blurred = sum(int((views[number].params.sigma > 0).sum()) for number in numbers)
            made = augment_batch(part, blurred, (height, width), size, taps, mean, std, dtype)
            for number, view in zip(numbers, made.split([len(views[n].image) for n in numbers]), strict=True):
                out[number] = view
    return out


@functools.cache
def compiles() -> bool:
    """Whether the kernels run on the GPU; found out once, with a line that says why where they do not.

    The environment may ask for Triton's interpreter, which is for tests, and Triton needs a C compiler.
    """
    if not isinstance(_crop, triton.JITFunction):
        return False
    try:
        triton.runtime.driver.active.get_current_device()  # builds what starts kernels, with the compiler
    except Exception as error:  # of the compiler, the linker or the driver: there is another executor
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "it needs a C compiler and Python's header files"
        rank_zero_print(
            f"  note: slower tensor operations make the views: Triton starts no kernels ({reason}); {remedy}"
        )
        return False
    return True


def pack_parameters(views: Sequence[Views]) -> NDArray:
    """(N, COLUMNS) float32: what the kernels read of all views of one size, those with a blur first."""
    parts = []
    for view in views:
        assert view.pixels.is_contiguous()
        params, size, one = view.params, float(view.size), np.ones(len(view.image))
        whole = Axis(0 * one, one, 0 * one, size * one)  # of views that are cropped already
        axes = (view.y or whole, view.x or whole)
        columns = [a for axis in axes for a in (axis.start, axis.scale, axis.low, axis.high)]
        first = np.where(params.jitter, (params.order == pixel_operations.CONTRAST).argmax(axis=1), 0)
        rows = np.zeros((len(first), COLUMNS.value), np.float32)
        rows[:, : pixel_operations.COLUMNS] = parameter_rows(params)
        rows[:, Y_AXIS.value : OUTPUT.value] = np.column_stack([*columns, first])
        parts.append(rows)
    rows = np.concatenate(parts)
    address = np.concatenate([v.pixels.data_ptr() + v.image.astype(np.int64) * v.pixels[0].numel() for v in views])
    rows[:, ADDRESS.value : Y_AXIS.value] = address[:, None].view(np.float32)  # the bits of a whole number
    rows[:, OUTPUT.value] = np.arange(len(rows), dtype=np.int32).view(np.float32)
    blurred_first: NDArray = rows[np.argsort(rows[:, pixel_operations.SIGMA] <= 0, kind="stable")]
    return blurred_first


def augment_batch(
    rows: Tensor, blurred: int, image: tuple[int, int], size: int, taps: int, mean: Statistic, std: Statistic,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The views (N, 3, size, size) of packed parameters (N, COLUMNS), of which the first `blurred` have a blur.

    image: height and width of the images. taps: of the blur.
    """
    n, tiles = len(rows), triton.cdiv(size * size, BLOCK)
    shape = {"SIZE": size, "BLOCK": BLOCK, "num_warps": WARPS}
    out = torch.empty(n, 3, size, size, dtype=dtype, device=rows.device, memory_format=torch.channels_last)
    work = torch.empty(n, 3, size, size, device=rows.device)
    gray_sums = torch.empty(n, tiles, device=rows.device)
    gain, shift = [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    _crop[n, tiles](rows, work, gray_sums, *image, **shape)
    padded = triton.next_power_of_2(tiles)
    _color[n, tiles](rows, work, gray_sums, out, blurred, *gain, *shift, TILES=padded, **shape)
    if blurred:
        columns = torch.empty(blurred, 3, size, size, device=rows.device)
        _blur_columns[blurred, tiles](rows, work, columns, taps // 2, **shape)
        _blur_rows[blurred, tiles](rows, columns, out, taps // 2, *gain, *shift, **shape)
    return out


def bytes_per_view(image: tuple[int, int], size: int, blurred: float, dtype: torch.dtype) -> float:
    """Bytes that a view moves between the memory of the device and its kernels, where each kernel reads a value once.

    image: height and width of the images, which count whole. blurred: share of the views that have a blur.
    """
    pixels = 3 * size * size
    cropped = 3 * image[0] * image[1] + 4 * pixels  # read by `_crop`, written by it
    colored = 4 * pixels + (1 - blurred) * dtype.itemsize * pixels
    blur = blurred * (4 * pixels + 2 * 4 * pixels + 4 * pixels + dtype.itemsize * pixels)
    return float(cropped + colored + blur + 4 * COLUMNS.value)


@triton.jit
def _pixels(SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Places in a view of the pixels of this program, and which of them are inside the view."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return at, at < SIZE * SIZE


@triton.jit
def _plane(base, view, SIZE: tl.constexpr):
    """The first value of a view (3, SIZE, SIZE)."""
    return base + view.to(tl.int64) * (3 * SIZE * SIZE)


@triton.jit
def _load(plane, at, inside, SIZE: tl.constexpr):
    """The three channels of pixels."""
    r = tl.load(plane + at, mask=inside, other=0.0)
    g = tl.load(plane + SIZE * SIZE + at, mask=inside, other=0.0)
    b = tl.load(plane + 2 * SIZE * SIZE + at, mask=inside, other=0.0)
    return r, g, b


@triton.jit
def _store(plane, at, inside, r, g, b, SIZE: tl.constexpr):
    tl.store(plane + at, r, mask=inside)
    tl.store(plane + SIZE * SIZE + at, g, mask=inside)
    tl.store(plane + 2 * SIZE * SIZE + at, b, mask=inside)


@triton.jit
def _store_view(out, row, at, inside, r, g, b, gain_r, gain_g, gain_b, shift_r, shift_g, shift_b, SIZE: tl.constexpr):
    """Apply what comes after the blur, normalize, and write channels last."""
    r, g, b = after_blur(r, g, b, row)
    view = tl.load(row + OUTPUT).to(tl.int32, bitcast=True)
    to = _plane(out, view, SIZE) + 3 * at
    tl.store(to, (r * gain_r + shift_r).to(out.dtype.element_ty), mask=inside)
    tl.store(to + 1, (g * gain_g + shift_g).to(out.dtype.element_ty), mask=inside)
    tl.store(to + 2, (b * gain_b + shift_b).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _adjust(r, g, b, row, place, mean):
    """Change the colour property at one place of the order of this view; mean: the part of it that contrast needs."""
    op = tl.load(row + ORDER + place).to(tl.int32)
    factor = tl.load(row + FACTORS + op)
    if op == HUE:
        if factor != 0:
            r, g, b = shift_hue(r, g, b, SIX * factor)
    else:
        base = tl.where(op == SATURATION, gray(r, g, b), tl.where(op == CONTRAST, mean, 0.0))
        part = (1 - factor) * base
        r, g, b = blend(r, factor, part), blend(g, factor, part), blend(b, factor, part)
    return r, g, b


@triton.jit
def _filter(axis, i):
    """The filter of pixels centred at `i` along an axis: first pixel of the image, number of pixels, and the rest."""
    scale, low, high = tl.load(axis + 1), tl.load(axis + 2), tl.load(axis + 3)
    half = tl.maximum(scale, 1.0)
    centre = tl.load(axis) + i * scale
    first = tl.floor(centre - half + 0.5).to(tl.int32)
    taps = tl.ceil(2 * half).to(tl.int32)
    return first, taps, centre, half, low, high


@triton.jit
def _weight(j, centre, half, low, high):
    """How much pixel j of the image counts; above 0 only inside the image, since low and high are."""
    middle = j + 0.5
    return tl.where((middle > low) & (middle < high), triangle(middle - centre, half), 0.0)


@triton.jit
def _crop(rows, work, gray_sums, height, width, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Resample a part of a view to [0, 1] and apply the colour properties before the contrast.

    Writes the pixels to `work` (N, 3, SIZE, SIZE) and the sum of their gray to `gray_sums` (N, tiles).
    """
    view = tl.program_id(0)
    row = rows + view * COLUMNS
    at, inside = _pixels(SIZE, BLOCK)
    i = at % SIZE + 0.5
    i = tl.where(tl.load(row + FLIP) > 0, SIZE - i, i)
    first_y, taps_y, centre_y, half_y, low_y, high_y = _filter(row + Y_AXIS, at // SIZE + 0.5)
    first_x, taps_x, centre_x, half_x, low_x, high_x = _filter(row + X_AXIS, i)
    image = tl.load((row + ADDRESS).to(tl.pointer_type(tl.int64))).to(tl.pointer_type(tl.uint8))
    r = tl.zeros([BLOCK], tl.float32)
    g = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for y in range(taps_y):
        weight_y = _weight(first_y + y, centre_y, half_y, low_y, high_y)
        line = tl.minimum(tl.maximum(first_y + y, 0), height - 1) * width  # outside of the image weights are 0
        for x in range(taps_x):
            weight = weight_y * _weight(first_x + x, centre_x, half_x, low_x, high_x)
            pixel = line + tl.minimum(tl.maximum(first_x + x, 0), width - 1)
            r += weight * tl.load(image + pixel).to(tl.float32)
            g += weight * tl.load(image + height * width + pixel).to(tl.float32)
            b += weight * tl.load(image + 2 * height * width + pixel).to(tl.float32)
            total += weight
    unit = 1 / (255 * tl.where(inside, total, 1.0))
    r, g, b = r * unit, g * unit, b * unit
    for place in range(tl.load(row + BEFORE_CONTRAST).to(tl.int32)):
        r, g, b = _adjust(r, g, b, row, place, 0.0)
    _store(_plane(work, view, SIZE), at, inside, r, g, b, SIZE)
    gray_sum = tl.sum(tl.where(inside, gray(r, g, b), 0.0))
    tl.store(gray_sums + view * tl.num_programs(1) + tl.program_id(1), gray_sum)


@triton.jit(do_not_specialize=["blurred"])
def _color(
    rows, work, gray_sums, out, blurred, gain_r, gain_g, gain_b, shift_r, shift_g, shift_b,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Apply the colours from the contrast on to `work`, and write it back where the view is one of the blurred first.

    The other views are finished. The parts of the mean gray are added up in one order, so a run can be repeated.
    """
    view = tl.program_id(0)
    row = rows + view * COLUMNS
    at, inside = _pixels(SIZE, BLOCK)
    r, g, b = _load(_plane(work, view, SIZE), at, inside, SIZE)
    if tl.load(row + JITTER) > 0:
        tiles = tl.num_programs(1)
        tile = tl.arange(0, TILES)
        mean = tl.sum(tl.load(gray_sums + view * tiles + tile, mask=tile < tiles, other=0.0)) / (SIZE * SIZE)
        for place in range(tl.load(row + BEFORE_CONTRAST).to(tl.int32), 4):
            r, g, b = _adjust(r, g, b, row, place, mean)
    r, g, b = before_blur(r, g, b, row)
    if view < blurred:
        _store(_plane(work, view, SIZE), at, inside, r, g, b, SIZE)
    else:
        _store_view(out, row, at, inside, r, g, b, gain_r, gain_g, gain_b, shift_r, shift_g, shift_b, SIZE)


@triton.jit
def _blur(plane, line, i, stride, row, radius, inside, SIZE: tl.constexpr):
    """Gaussian blur of the pixels i of lines of a view, with mirrored borders; stride: between pixels of a line.

    The kernel ends at 6 sigma: what it leaves out is 2e-9 of its weight, less than float32 can tell.
    """
    sigma = tl.load(row + SIGMA)
    radius = tl.minimum(radius, tl.ceil(6 * sigma).to(tl.int32))
    r, g, b = _load(plane, line + i * stride, inside, SIZE)
    total = 1.0
    for k in range(1, radius + 1):
        weight = tl.exp(-0.5 * (k / sigma) * (k / sigma))
        total += 2 * weight
        before = tl.abs(i - k)
        after = SIZE - 1 - tl.abs(SIZE - 1 - i - k)
        r0, g0, b0 = _load(plane, line + before * stride, inside, SIZE)
        r1, g1, b1 = _load(plane, line + after * stride, inside, SIZE)
        r += weight * (r0 + r1)
        g += weight * (g0 + g1)
        b += weight * (b0 + b1)
    return r / total, g / total, b / total


@triton.jit(do_not_specialize=["radius"])
def _blur_columns(rows, work, columns, radius, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Blur `work` along its columns into `columns`, for the blurred views alone."""
    view = tl.program_id(0)
    at, inside = _pixels(SIZE, BLOCK)
    row = rows + view * COLUMNS
    r, g, b = _blur(_plane(work, view, SIZE), at % SIZE, at // SIZE, SIZE, row, radius, inside, SIZE)
    _store(_plane(columns, view, SIZE), at, inside, r, g, b, SIZE)


@triton.jit(do_not_specialize=["radius"])
def _blur_rows(
    rows, columns, out, radius, gain_r, gain_g, gain_b, shift_r, shift_g, shift_b,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blur `columns` along its rows, and finish the blurred views."""
    view = tl.program_id(0)
    at, inside = _pixels(SIZE, BLOCK)
    row = rows + view * COLUMNS
    line = at // SIZE * SIZE
    r, g, b = _blur(_plane(columns, view, SIZE), line, at % SIZE, 1, row, radius, inside, SIZE)
    _store_view(out, row, at, inside, r, g, b, gain_r, gain_g, gain_b, shift_r, shift_g, shift_b, SIZE)
