"""Bad files: found without decoding all, and left out or named before anything is computed."""

import errno
import io

import data.check
import numpy as np
import pytest
import torch
from PIL import Image

import data.folder
from data.datasets import read_dataset
from data.folder import read_folder
from data.image_check import check_files, inspect
from data.images import DAMAGED, decode_file
from data.pipelines.base import DataModule
from data.sampler import epoch_order
from data.views import ViewSpec
from tests.data.test_pipelines import SUBJECTS, build, training_batches
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
def test_what_passes_is_what_decodes(tmp_path, name, content, good):
    (tmp_path / name).write_bytes(content)
    assert decodes(tmp_path / name) is good, "by the decoder"
    assert passes(tmp_path / name) is good, "by the check"


def test_floating_point_pixels_are_bad(tmp_path):
    Image.fromarray(np.zeros((5, 6), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="floating-point pixels without a known range"):
        inspect(str(tmp_path / "x.tiff"))
    with pytest.raises(UserError, match=r"x.tiff is not a readable image \(it holds floating-point"):
        decode_file(str(tmp_path / "x.tiff"))


def test_only_suspicious_files_are_decoded(tmp_path, monkeypatch):
    for name, content in (("a.jpg", JPEG), ("b.png", PNG), ("c.webp", WEBP), ("d.jpg", JPEG + b"x"), ("e.ppm", None)):
        (tmp_path / name).write_bytes(content or encoded("PPM"))
    decoded = []
    monkeypatch.setattr(data.check, "pixels_of", lambda path: decoded.append(path[-5:]))
    images = read_folder(tmp_path)
    assert images.sizes().tolist() == [[70, 90]] * 5
    assert sorted(decoded) == ["d.jpg", "e.ppm"]
    images.sizes()
    assert len(decoded) == 2, "a second look at the files"


def test_reasons_are_in_order_and_a_failing_disk_is_not_a_bad_image(tmp_path, monkeypatch):
    class_folders(tmp_path / "x", each=100)
    for i in (90, 3, 70):
        (tmp_path / "x" / "c1" / f"{i}.png").write_bytes(PNG[:200])
    images = read_folder(tmp_path / "x")
    sizes, bad = check_files(images.path, len(images))
    assert [images.names[i] for i in bad] == sorted(f"c1/{i}.png" for i in (90, 3, 70))
    assert (sizes == 0).all(1).nonzero()[0].tolist() == list(bad)

    def fails(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(data.check, "inspect", fails)
    with pytest.raises(UserError, match=r"png cannot be read \(Input/output error\); try again"):
        check_files(images.path, len(images))


def test_skipping_reads_the_folder_as_if_the_bad_files_were_not_there(tmp_path):
    clean, spoiled = (tmp_path / name for name in ("clean", "spoiled"))
    for root in (clean, spoiled):
        class_folders(root / "train", classes=3)
        class_folders(root / "val", classes=3)
    bad = spoil(spoiled / "train" / "c1")
    bad += spoil(spoiled / "val" / "c0")
    told = rf"{len(BAD)} of {18 + len(BAD)} files in .*train are not readable images \(c1/cut.jpg, .* and 1 more\); "
    with pytest.raises(UserError, match=told + "repair or remove them, or pass --on_bad_image skip$"):
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


def test_no_class_may_vanish(tmp_path):
    class_folders(tmp_path / "train", classes=3)
    for path in (tmp_path / "train" / "c1").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(UserError, match="no file of c1 in .*train is a readable image; repair some, or remove"):
        read_dataset("custom", str(tmp_path), None, None, "skip")
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 18 files in .*train is a readable image .c0/0.png, "):
        read_dataset("custom", str(tmp_path), None, None, "skip")


def test_a_pile_is_sifted_too(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "2.png").write_bytes(b"text")
    data = read_dataset("custom", str(tmp_path), None, None, "skip")
    assert data.train.names == ["0.png", "1.png", "3.png"]
    assert data.train.labels.tolist() == [-1] * 3
    assert list(data.bad) == [str(tmp_path / "2.png")]


def test_what_is_no_folder_has_nothing_to_skip():
    with pytest.raises(UserError, match="--on_bad_image skip does nothing for digits"):
        read_dataset("digits", "none", None, None, "skip")


def test_a_very_large_folder_is_only_asked_for_empty_files_unless_they_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(data.folder, "CHECKED", 5)
    root = class_folders(tmp_path / "train")
    (root / "c0" / "1.png").write_bytes(b"text")
    assert len(read_dataset("custom", str(tmp_path), None, None).train) == 12
    (root / "c0" / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 12 files .*c0/2.png"):
        read_dataset("custom", str(tmp_path), None, None)
    assert len(read_dataset("custom", str(tmp_path), None, None, "skip").train) == 10


@pytest.mark.parametrize("workers", [0, 9])
@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.filterwarnings("ignore:.*worker processes in total")
def test_every_pipeline_sees_the_same_images(tmp_path, name, workers):
    """Whatever the number of workers: none, or more than a machine of tests has cores."""
    root = class_folders(tmp_path / "train", each=10)
    spoil(root / "c0")
    images = read_dataset("custom", str(tmp_path), None, None, "skip")
    batches = list(training_batches(build(name, images, [ViewSpec(16, count=2)], workers, batch_size=5)))
    index = torch.cat([b.index for b in batches])
    assert sorted(index.tolist()) == list(range(20))
    labels = torch.cat([b.labels for b in batches])
    assert torch.equal(labels, (index >= 10).long()), "c0 comes first, and lost none of its ten"
    assert index.tolist() == epoch_order(20, 0, 0).tolist(), "the same order for all"


def read_as_rank(rank, world, roots):
    images = read_dataset("custom", roots[rank], None, None, "skip")
    try:
        DataModule(images, [ViewSpec(16)], 4, 0, 0).setup("fit")
    except UserError as e:
        return str(e)
    return ""


def test_processes_that_read_other_images_refuse_to_share_them(tmp_path, ranks):
    for name in ("a", "b"):
        spoil(class_folders(tmp_path / name / "train") / "c0")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert ranks(2).run(read_as_rank, [a, b]) == ["", ""], "the same images under another path"
    (tmp_path / "b" / "train" / "c0" / "1.png").write_bytes(b"text")
    for told in ranks(2).run(read_as_rank, [a, b]):
        assert "the processes have read different images" in told
