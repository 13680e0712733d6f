"""Images in memory and image files decoded to RGB."""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from data.folder import FolderImages, read_folder
from data.image_check import inspect
from data.images import _decode_jpeg, _decode_with_pillow, decode_file, pixels_of, readable_formats
from data.pipelines.dali import Headers
from data.scan import find_images
from tests.helpers.commands import ROOT
from tests.helpers.images import write_image
from utils.errors import UserError


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1"])
def test_decode_file_converts_every_mode_to_rgb(tmp_path, mode):
    path = write_image(tmp_path / "x.png", mode)
    image = decode_file(str(path))
    assert image.shape == (3, 16, 20)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(path).convert("RGB")))


def test_decode_file_converts_cmyk(tmp_path):
    image = decode_file(str(write_image(tmp_path / "x.jpg", "CMYK")))
    assert image.shape == (3, 16, 20)
    assert image.float().std() > 10


def test_decode_file_scales_16_bit_gray(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    image = decode_file(str(tmp_path / "x.png"))
    assert image[0].flatten().tolist() == list(range(256))
    assert torch.equal(image[0], image[2])


def test_decode_file_names_a_truncated_image(tmp_path):
    path = write_image(tmp_path / "x.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"x.jpg is not a readable image"):
        decode_file(str(path))


@pytest.mark.parametrize("how", ["420", "444", "gray", "progressive", "rotated", "CMYK", "RGB", "odd", "truncated"])
def test_fast_jpeg_decoder_gives_pillows_pixels_to_the_bit(tmp_path, how):
    small = torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    image = TF.to_pil_image(TF.resize(small, [60, 80], antialias=True))
    options = {"444": {"subsampling": 0}, "progressive": {"progressive": True}, "RGB": {"keep_rgb": True}}.get(how, {})
    if how == "rotated":
        exif = image.getexif()
        exif[0x0112] = 6
        options = {"exif": exif}
    image = image.convert({"gray": "L", "CMYK": "CMYK"}.get(how, "RGB"))
    image = image.crop((0, 0, 33, 7)) if how == "odd" else image
    path = tmp_path / "x.jpg"
    image.save(path, **options)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    found = _decode_jpeg(str(path))
    if how in ("CMYK", "RGB", "truncated"):
        assert found is None, "left to Pillow"
    else:
        assert torch.equal(found, _decode_with_pillow(str(path)))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 16
%%EndComments
1 0 0 setrgbcolor 0 0 20 16 rectfill
showpage
%%EOF
"""


def no_process(*args, **kwargs):
    raise AssertionError(f"a process was started: {args}")


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif"])
def test_an_eps_file_called_jpg_starts_no_process(tmp_path, monkeypatch, name):
    for function in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, function, no_process)
    monkeypatch.setattr(os, "system", no_process)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    path = tmp_path / name
    path.write_bytes(EPS)
    with Image.open(path) as image:
        assert image.format == "EPS", "a file that Pillow opens by itself"
        with pytest.raises(AssertionError, match="a process was started"):
            image.load()
    for read in (pixels_of, inspect):
        with pytest.raises(ValueError, match="it is a PostScript file, which is not read; convert it to JPEG or PNG"):
            read(str(path))
    with pytest.raises(UserError, match=f"{name} is not a readable image .it is a PostScript file"):
        decode_file(str(path))
    with pytest.raises(UserError, match=f"{name} is not a readable image .it is a PostScript file"):
        Headers(FolderImages(tmp_path, find_images(tmp_path, "").files, [-1], []))


@pytest.mark.parametrize("form", ["ICO", "PCX", "TGA", "PDF", "JPEG2000", "SGI"])
def test_formats_that_are_not_documented_are_not_opened(tmp_path, form):
    Image.new("RGB", (20, 16)).save(tmp_path / "x", form)
    with pytest.raises(UserError, match="cannot identify it"):
        decode_file(str(tmp_path / "x"))


def test_an_heic_file_called_jpg_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match="it is a HEIC or AVIF file, which is damaged or not read here; pip install"):
        decode_file(str(tmp_path / "x.jpg"))


@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
def test_photographs_of_telephones_are_read(tmp_path, form):
    if form == "HEIF":
        pytest.importorskip("pillow_heif", reason="pillow-heif is in requirements-heif.txt")
    assert form in readable_formats()
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((64, 48))
    path = tmp_path / {"HEIF": "x.HEIC", "AVIF": "x.avif"}[form]
    small.save(path, form, quality=95)
    images = read_folder(tmp_path)
    images.check()
    assert (images.names[:], images.unread, images.sizes().tolist()) == ([path.name], [], [[48, 64]])
    difference = images.decode(0).permute(1, 2, 0).numpy().astype(float) - np.array(small)
    assert np.abs(difference).mean() < 6
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=rf"1 of 1 files in .* are not readable images .{path.name}"):
        read_folder(tmp_path).check()


@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
def test_whole_containers_with_corrupt_content_are_bad_images(tmp_path, form):
    if form == "HEIF":
        pytest.importorskip("pillow_heif", reason="pillow-heif is in requirements-heif.txt")
    assert form in readable_formats()
    for i in range(3):
        write_image(tmp_path / f"{i}.png", seed=i)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / {"HEIF": "x.heic", "AVIF": "x.avif"}[form]
    Image.fromarray(noise).save(path, form, quality=90)
    data = path.read_bytes()
    content = data.index(b"mdat") + 4
    path.write_bytes(data[:content] + b"\xff" * (len(data) - content))
    with pytest.raises(UserError, match=rf"{path.name} is not a readable image .*; repair or remove it"):
        decode_file(str(path))
    with pytest.raises(UserError, match=rf"1 of 4 files in .* are not readable images .{path.name}"):
        read_folder(tmp_path).check()
    readable, bad = read_folder(tmp_path).readable()
    assert (len(readable), list(bad)) == (3, [str(path)])


def test_without_pillow_heif_its_formats_are_not_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "HEIF" not in readable_formats.__wrapped__()


def test_a_tiff_file_of_many_channels_says_what_to_keep(tmp_path):
    entries = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 122), (277, 13), (278, 4), (279, 208)]
    tags = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in entries)
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4 + 208))
    with pytest.raises(UserError, match="it is a TIFF file that is damaged or has other channels than one or three"):
        decode_file(str(tmp_path / "x.tif"))


def png_of(width, height):
    """A valid PNG header of any size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of(width, height):
    """A small JPEG that declares another size."""
    box = io.BytesIO()
    Image.new("RGB", (20, 16)).save(box, "JPEG")
    data = bytearray(box.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_of(width, height):
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 10**9, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def tiff_of(side, tile):
    """A truncated TIFF file of side x side gray pixels in tiles of tile x tile, packed with LZW."""
    tags = {256: side, 257: side, 258: 8, 259: 5, 262: 1, 277: 1, 322: tile, 323: tile, 324: 150, 325: 200}
    entries = [struct.pack("<HHII", number, 4, 1, value) for number, value in tags.items()]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4 + 200)


def gif_of(screen, frame):
    """A GIF file of screen x screen pixels whose first frame is larger than that."""
    header = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    return header + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02\x4c\x01\0;"


BOMBS = {  # name -> content: just above what is read, where Pillow only warns, and far above
    "a.png": png_of(10_000, 9_000), "b.png": png_of(2**30, 2**30), "c.jpg": jpeg_of(10_000, 9_000),
    "d.jpg": jpeg_of(65_500, 65_500),
    "i.tif": tiff_of(9000, 2**15), "j.tiff": tiff_of(64, 2**20), "k.gif": gif_of(10, 65_535),
    "e.ppm": b"P6 10000 9000 255\n", "f.pgm": b"P5 1000000 1000000 255\n",
    "g.bmp": bmp_of(10_000, 9_000), "h.bmp": bmp_of(2**20, 2**20),
    "i.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_images_with_too_many_pixels_are_refused_by_their_header(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name])
    for _ in range(2):  # with Pillow's warning as an error, and without it
        with pytest.raises(UserError, match=f"{name} is not a readable image .it has more than 89,478,485 pixels"):
            decode_file(str(tmp_path / name))
        with pytest.raises(Image.DecompressionBombError, match="more than 89,478,485 pixels; make it smaller"):
            inspect(str(tmp_path / name))
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


ANIMATIONS = {"a.gif": "GIF", "b.tiff": "TIFF", "c.webp": "WEBP", "d.png": "PNG"}


def animation(path, form, frames):
    images = [Image.new("RGB", (400, 300), (i * 90 % 256, i * 50 % 256, 255)) for i in range(frames)]
    images[0].save(path, form, save_all=True, append_images=images[1:], **({"method": 0} if form == "WEBP" else {}))
    return path


@pytest.mark.parametrize("name", ANIMATIONS)
def test_decode_file_reads_the_first_frame_of_an_animation(tmp_path, name):
    path = animation(tmp_path / name, ANIMATIONS[name], 20)
    with Image.open(path) as image:
        assert image.n_frames == 20
    pixels = decode_file(str(path))
    assert pixels.shape == (3, 300, 400)
    assert (pixels.flatten(1).float().mean(1) - torch.tensor([0.0, 0.0, 255.0])).abs().max() <= 2
    assert inspect(str(path)) == (300, 400, False)


HOSTILE = """
import resource, sys
from pathlib import Path
from data.image_check import inspect
from data.images import decode_file
from utils.errors import UserError
decode_file(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = 0
for path in sorted(Path(sys.argv[2]).iterdir()):
    for call in (decode_file, inspect):
        try:
            call(str(path))
            read += 1
        except Exception:
            pass
print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_and_animations_need_little_memory_and_print_no_warning(tmp_path):
    (tmp_path / "x").mkdir()
    for name, content in BOMBS.items():
        (tmp_path / "x" / name).write_bytes(content)
    for name, form in ANIMATIONS.items():
        animation(tmp_path / "x" / f"z{name}", form, 300)  # 108 MB once decoded
    palette = Image.new("P", (20, 16))
    palette.save(tmp_path / "x" / "transparent.png", transparency=b"\0\1\2")  # Pillow warns when it is converted
    good = write_image(tmp_path / "good.png")
    command = [sys.executable, "-c", HOSTILE, str(good), str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    read, kilobytes = map(int, done.stdout.split())
    assert read == 2 * (len(ANIMATIONS) + 1)
    assert kilobytes < 80_000
    assert not done.stderr


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", ["x.tiff", "x.jpg", "x.png", "x.webp"])
def test_sizes_of_the_header_are_those_of_the_pixels_in_every_orientation(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 16)).save(tmp_path / name, exif=exif)
    images = read_folder(tmp_path)
    assert tuple(images.decode(0).shape[1:]) == tuple(images.sizes()[0])
    images.decode(0)  # compared with the size that is known now
