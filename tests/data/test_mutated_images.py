"""Mutated image files: each is decoded, or refused with an error of one line; nothing else ever happens."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.datasets import read_dataset
from data.folder import read_folder
from data.image_check import inspect
from data.images import DAMAGED, decode_file
from tests.helpers.mutations import apply, mutations
from utils.errors import UserError

# Pillow's remarks about odd files are hidden where images are read; the tests turn every warning into an error.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encoded(form, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    box = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(box, form, **options)
    return box.getvalue()


def animated(form):
    frames = [Image.new("RGB", (31, 24), (90 * i % 256, 50 * i % 256, 255)) for i in range(4)]
    return encoded(form, save_all=True, append_images=frames)


EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGES = {
    "jpg": encoded("JPEG", exif=EXIF), "progressive.jpg": encoded("JPEG", progressive=True),
    "cmyk.jpg": encoded("JPEG", "CMYK"), "gray.jpg": encoded("JPEG", "L"),
    "png": encoded("PNG", exif=EXIF), "palette.png": encoded("PNG", "P"), "animated.png": animated("PNG"),
    "webp": encoded("WEBP"), "lossless.webp": encoded("WEBP", "RGBA", lossless=True), "animated.webp": animated("WEBP"),
    "gif": encoded("GIF"), "animated.gif": animated("GIF"),
    "bmp": encoded("BMP"), "palette.bmp": encoded("BMP", "P"),
    "tiff": encoded("TIFF", exif=EXIF), "lzw.tiff": encoded("TIFF", compression="tiff_lzw"),
    "jpeg.tiff": encoded("TIFF", compression="jpeg"), "deflate.tiff": encoded("TIFF", compression="tiff_adobe_deflate"),
    "ppm": encoded("PPM"), "pgm": encoded("PPM", "L"),
}  # fmt: skip


def decodes_or_is_refused(name, content):
    """Decode the file; a refusal has one line, the check refuses no file that decodes, and knows its size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{name}"
        path.write_bytes(content)
        pixels, message, size = None, "", None
        try:
            pixels = decode_file(str(path))
        except UserError as e:
            message = str(e)
        try:
            size = inspect(str(path))[:2]
        except DAMAGED:
            size = None
    assert len(message.splitlines()) == (pixels is None)
    if pixels is not None:
        assert pixels.dtype.itemsize == 1
        assert size == tuple(pixels.shape[1:])


images_and_mutations = given(st.sampled_from(sorted(IMAGES)), mutations())


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_images_without_mutations_decode(name):
    decodes_or_is_refused(name, IMAGES[name])


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_images_cut_at_any_place_decode_or_are_refused(name):
    for keep in {*range(0, 64, 3), *np.linspace(64, len(IMAGES[name]), 20).astype(int).tolist()}:
        decodes_or_is_refused(name, IMAGES[name][:keep])


@settings(max_examples=400, deadline=5000, derandomize=True)
@example("jpg", [("set", 0.0, b"%!PS")])
@images_and_mutations
def test_mutated_images_decode_or_are_refused(name, changes):
    decodes_or_is_refused(name, apply(changes, IMAGES[name]))


@pytest.mark.slow
@settings(max_examples=10_000, deadline=5000)
@images_and_mutations
def test_thousands_of_mutated_images_decode_or_are_refused(name, changes):
    decodes_or_is_refused(name, apply(changes, IMAGES[name]))


def test_a_folder_of_mutated_images_is_read_without_those_that_are_damaged(tmp_path):
    rng = np.random.default_rng(1)
    for name, content in IMAGES.items():
        data = bytearray(content)
        for at in rng.integers(0, len(data), 20):
            data[at] = rng.integers(256)
        (tmp_path / f"a.{name}").write_bytes(content)
        (tmp_path / f"b.{name}").write_bytes(data)
    assert len(read_folder(tmp_path)) == 2 * len(IMAGES)
    data = read_dataset("custom", str(tmp_path), None, None, "skip")
    assert not [path for path in data.bad if "/a." in path]
    assert all(len(reason.splitlines()) == 1 for reason in data.bad.values())
