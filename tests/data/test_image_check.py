"""Bad files: found without decoding all files, and left out or named before anything is computed."""

import errno
import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import data.encoded
import data.image_check
from data.datasets import read_dataset
from data.folder import read_folder
from data.image_check import check_files, inspect
from data.images import DAMAGED, decode_file
from tests.helpers.images import BAD, class_folders, spoil, write_image
from utils.errors import UserError


def encoded(form="JPEG", size=(90, 70), **options):
    small = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    box = io.BytesIO()
    Image.fromarray(small).resize(size).save(box, form, **options)
    return box.getvalue()


def decodes(path):
    try:
        decode_file(str(path))
    except UserError:
        return False
    return True


def passes(path):
    try:
        inspect(str(path))
    except DAMAGED:
        return False
    return True


JPEG, PNG, WEBP = encoded(), encoded("PNG"), encoded("WEBP")


FILES = [  # name, content, whether it is an image
    ("whole.jpg", JPEG, True),
    ("cut_off.jpg", JPEG[: len(JPEG) * 2 // 3], False),
    ("without_its_last_bytes.jpg", JPEG[:-30], False),
    ("cut_in_its_header.jpg", JPEG[:100], False),
    ("with_a_tail.jpg", JPEG + b"phones write more here", True),
    ("zeros_for_its_end.jpg", JPEG[:-2] + bytes(50), True),  # Pillow reads it
    ("progressive.jpg", encoded(progressive=True), True),
    ("progressive_cut.jpg", encoded(progressive=True)[:-200], False),
    ("thumbnail_and_no_more.jpg", JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG, False),
    ("text.jpg", b"this is text", False),
    ("nothing.jpg", b"", False),
    ("a_jpeg.png", JPEG, True),
    ("a_cut_jpeg.png", JPEG[:-30], False),
    ("whole.png", PNG, True),
    ("cut_off.png", PNG[: len(PNG) // 2], False),
    ("without_its_end.png", PNG[:-12], True),  # every pixel is there
    ("with_a_tail.png", PNG + b"more", True),
    ("whole.webp", WEBP, True),
    ("cut_off.webp", WEBP[:-20], False),
    *((f"whole.{form}", encoded(form.upper()), True) for form in ("gif", "bmp", "ppm", "tiff")),
    *((f"cut_off.{form}", encoded(form.upper())[:-60], False) for form in ("gif", "bmp", "ppm", "tiff")),
    ("not_a_number.ppm", encoded("PPM").replace(b"255", b"2x5", 1), False),
]


@pytest.mark.parametrize(("name", "content", "good"), FILES, ids=[name for name, *_ in FILES])
def test_inspect_passes_exactly_the_files_that_decode(tmp_path, name, content, good):
    (tmp_path / name).write_bytes(content)
    assert decodes(tmp_path / name) is good, "by the decoder"
    assert passes(tmp_path / name) is good, "by the check"


def test_inspect_refuses_floating_point_pixels(tmp_path):
    Image.fromarray(np.zeros((5, 6), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="floating-point"):
        inspect(str(tmp_path / "x.tiff"))
    with pytest.raises(UserError, match=r"x.tiff is not a readable image \(.*floating-point"):
        decode_file(str(tmp_path / "x.tiff"))


def test_inspect_decodes_only_suspicious_files(tmp_path, monkeypatch):
    for name, content in (("a.jpg", JPEG), ("b.png", PNG), ("c.webp", WEBP), ("d.jpg", JPEG + b"x"), ("e.ppm", None)):
        (tmp_path / name).write_bytes(content or encoded("PPM"))
    decoded = []
    monkeypatch.setattr(data.image_check, "pixels_of", lambda path: decoded.append(path[-5:]))
    images = read_folder(tmp_path)
    assert images.sizes().tolist() == [[70, 90]] * 5
    assert sorted(decoded) == ["d.jpg", "e.ppm"]
    images.sizes()
    assert len(decoded) == 2, "a second look at the files"


def test_check_files_orders_reasons_and_raises_errors_of_the_disk(tmp_path, monkeypatch):
    class_folders(tmp_path / "x", each=100)
    for i in (90, 3, 70):
        (tmp_path / "x" / "c1" / f"{i}.png").write_bytes(PNG[:200])
    images = read_folder(tmp_path / "x")
    sizes, bad, _ = check_files(images.path, len(images))
    assert [images.names[i] for i in bad] == sorted(f"c1/{i}.png" for i in (90, 3, 70))
    assert (sizes == 0).all(1).nonzero()[0].tolist() == list(bad)

    def fails(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(data.image_check, "inspect", fails)
    with pytest.raises(UserError, match=r"png cannot be read \(Input/output error\); try again"):
        check_files(images.path, len(images))


def test_read_dataset_with_skip_is_that_of_a_folder_without_the_bad_files(tmp_path):
    clean, spoiled = (tmp_path / name for name in ("clean", "spoiled"))
    for root in (clean, spoiled):
        class_folders(root / "train", classes=3)
        class_folders(root / "val", classes=3)
    bad = spoil(spoiled / "train" / "c1")
    bad += spoil(spoiled / "val" / "c0")
    message = rf"{len(BAD)} of {18 + len(BAD)} files in .*train are not readable images \(c1/cut.jpg, .* and 1 more\); "
    with pytest.raises(UserError, match=message + "repair or remove them, or pass --on_bad_image skip$"):
        read_dataset("custom", str(spoiled), None, None)
    a = read_dataset("custom", str(clean), None, None, "skip")
    b = read_dataset("custom", str(spoiled), None, None, "skip")
    assert not a.bad
    assert not a.notes
    for split in ("train", "val"):
        x, y = a.splits()[split], b.splits()[split]
        assert x.names == y.names
        assert torch.equal(x.labels, y.labels)
        assert x.fingerprint() == y.fingerprint()
        assert np.array_equal(x.sizes(), y.sizes())
    assert list(b.bad) == [str(path) for path in bad]
    assert [why for path, why in b.bad.items() if path.endswith("empty.jpg")] == ["zero bytes"] * 2
    assert len(b.notes) == 2
    assert f"{len(BAD)} of {18 + len(BAD)} files" in b.notes[0]
    for i in range(18):  # labels are still those of the folders
        assert b.train.names[i].startswith(f"c{b.train.labels[i]}/")
        assert b.train.path(i) == str(spoiled / "train" / b.train.names[i])


def test_read_dataset_with_skip_refuses_to_lose_a_class(tmp_path):
    class_folders(tmp_path / "train", classes=3)
    for path in (tmp_path / "train" / "c1").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(UserError, match="no file of c1 in .*train is a readable image; repair some, or remove"):
        read_dataset("custom", str(tmp_path), None, None, "skip")
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 18 files in .*train is a readable image .c0/0.png, "):
        read_dataset("custom", str(tmp_path), None, None, "skip")


def test_read_dataset_with_skip_checks_an_unlabelled_folder(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "2.png").write_bytes(b"text")
    data = read_dataset("custom", str(tmp_path), None, None, "skip")
    assert data.train.names == ["0.png", "1.png", "3.png"]
    assert data.train.labels.tolist() == [-1] * 3
    assert list(data.bad) == [str(tmp_path / "2.png")]


def test_read_dataset_refuses_skip_for_images_in_memory():
    with pytest.raises(UserError, match="--on_bad_image skip has no effect on digits"):
        read_dataset("digits", "none", None, None, "skip")


def test_read_dataset_looks_only_for_empty_files_in_a_very_large_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data.encoded, "CHECKED", 5)
    root = class_folders(tmp_path / "train")
    (root / "c0" / "1.png").write_bytes(b"text")
    assert len(read_dataset("custom", str(tmp_path), None, None).train) == 12
    (root / "c0" / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 12 files .*c0/2.png"):
        read_dataset("custom", str(tmp_path), None, None)
    assert len(read_dataset("custom", str(tmp_path), None, None, "skip").train) == 10


def png_of_16_bits(channels):
    """A PNG file of 4 x 2 pixels with 16 bits per channel, which Pillow cannot write in colour."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = struct.pack(">IIBBBBB", 4, 2, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(range(8 * channels))) * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_images_of_16_bits_are_counted_in_one_note(tmp_path, monkeypatch):
    for split in ("train", "val"):
        class_folders(tmp_path / split, each=3)
        for channels in (1, 3, 4):
            (tmp_path / split / "c0" / f"png{channels}.png").write_bytes(png_of_16_bits(channels))
        write_image(tmp_path / split / "c1" / "a.tif", "I;16")
        (tmp_path / split / "c1" / "b.pgm").write_bytes(b"P5 4 2 65535\n" + bytes(16))
        (tmp_path / split / "c1" / "c.bmp").write_bytes(encoded("BMP"))
    (tmp_path / "val" / "c1" / "d.png").write_bytes(b"text")
    for on_bad_image in ("skip", "stop"):
        notes = read_dataset("custom", str(tmp_path), None, None, on_bad_image).notes
        (note,) = [note for note in notes if "16 bits per channel" in note]
        assert note.startswith("10 of 24 images in ")
        (tmp_path / "val" / "c1" / "d.png").unlink(missing_ok=True)
    for name in ("CHECKED", "HEADERS"):  # a very large folder, of which some headers are read
        monkeypatch.setattr(data.encoded, name, 7)
    notes = read_dataset("custom", str(tmp_path / "train"), None, None).notes
    assert any(re.match(r"\d of 7 images in .* have 16 bits per channel", note) for note in notes)
    plain = class_folders(tmp_path / "plain")
    assert read_dataset("custom", str(plain), None, None).notes == []
