"""Folders of image files: names, labels, fingerprints, and the files that are left out."""

import os

import pytest

from data.datasets import read_dataset
from data.encoded import preview
from data.folder import read_folder
from tests.helpers.dali import WITH_DALI
from tests.helpers.images import class_folders, write_image
from tests.helpers.pipelines import EVERY_PIPELINE, build, training_batches
from utils.errors import UserError


def test_fingerprint_changes_with_files_and_split(tmp_path):
    a = read_folder(class_folders(tmp_path / "a")).fingerprint()
    assert a == read_folder(class_folders(tmp_path / "b")).fingerprint()
    write_image(tmp_path / "b" / "c0" / "0.png", size=(30, 30))
    assert a != read_folder(tmp_path / "b").fingerprint()
    digits = read_dataset("digits", "none", None, None)
    assert digits.train.fingerprint() != digits.val.fingerprint()


def test_read_folder_takes_the_classes_of_another_split(tmp_path):
    class_folders(tmp_path, classes=3)
    images = read_folder(tmp_path, ["a", "c0", "c1", "c2"])
    assert sorted(set(images.labels.tolist())) == [1, 2, 3]
    with pytest.raises(UserError, match="c2"):
        read_folder(tmp_path, ["c0", "c1"])


def test_preview_shows_three_names():
    assert preview(["a", "b"]) == "a, b"
    assert preview(list("abcde")) == "a, b, c and 2 more"


NAMES = [b"\xff\xfe.png", b"line\nbreak.png", "é 漢 \U0001f600.png".encode(), b"n" * 251 + b".png"]


def test_read_folder_reads_files_whose_names_are_not_utf8_have_line_breaks_or_are_very_long(tmp_path):
    whole = write_image(tmp_path / "x.png").read_bytes()
    for folder in (b"c0", b"\xe9t\xe9"):
        path = os.fsencode(tmp_path) + b"/train/" + folder
        os.makedirs(path)
        for name in NAMES:
            with open(path + b"/" + name, "wb") as file:
                file.write(whole)
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data.train.classes == ["\\xe9t\\xe9", "c0"]
    assert len(data.train.fingerprint()) == len(data.train.state()) == 16
    assert [data.train.decode(i).shape for i in range(8)] == [(3, 16, 20)] * 8
    for i in range(8):
        with open(os.fsencode(data.train.path(i)), "wb") as file:
            file.write(b"text" if i % 2 else whole)
    with pytest.raises(UserError) as e:
        read_folder(tmp_path / "train").check()
    str(e.value).encode("utf-8")
    assert len(str(e.value).splitlines()) == 1
    skipped = read_dataset("custom", str(tmp_path), None, None, "skip")
    assert len(skipped.bad) == 4
    for line in (*skipped.notes, *skipped.bad):
        line.encode("utf-8")
        assert len(line.splitlines()) == 1


def test_fingerprint_does_not_depend_on_when_a_file_was_written_and_state_does(tmp_path):
    root = class_folders(tmp_path / "a")
    before = read_folder(root)
    os.utime(root / "c0" / "0.png", ns=(1, 1))
    after = read_folder(root)
    assert after.fingerprint() == before.fingerprint()
    assert after.state() != before.state()
    assert read_folder(root).state() == after.state()


def test_decode_names_a_file_that_changed_or_vanished_after_the_folder_was_read(tmp_path):
    images = read_folder(class_folders(tmp_path / "a"))
    images.check()
    write_image(tmp_path / "a" / "c0" / "0.png", size=(30, 40))
    with pytest.raises(UserError, match=r"c0/0.png changed while the run went on \(from 20 x 16 pixels to 30 x 40\)"):
        images.decode(0)
    (tmp_path / "a" / "c0" / "1.png").unlink()
    with pytest.raises(UserError, match=r"c0/1.png is not a readable image \(No such file or directory\); put it back"):
        images.decode(1)


@pytest.fixture
def bitmaps(tmp_path):
    """Class folders of images whose files all have one length."""
    for i in range(8):
        path = write_image(tmp_path / "a" / f"c{i % 2}" / f"{i}.bmp", seed=i)
    assert path.stat().st_size == 54 + 16 * 60
    return tmp_path / "a"


def again(path):
    """Another image of the same length takes the place of a file, a moment later."""
    written = path.stat().st_mtime_ns
    write_image(path, seed=12345)
    os.utime(path, ns=(written, written + 1))


def test_decode_refuses_a_file_of_another_length_and_the_same_size_in_pixels(bitmaps):
    images = read_folder(bitmaps)
    with open(images.path(3), "ab") as file:
        file.write(b"x")
    with pytest.raises(
        UserError, match=r"changed while the run went on \(from 1,014 to 1,015 bytes\); put it back"
    ) as e:
        images.decode(3)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.parametrize("name", EVERY_PIPELINE)
def test_every_pipeline_that_reads_files_each_epoch_warns_once_of_a_file_written_again(bitmaps, name, capfd):
    """With equal length; memory has read the files before."""
    module = build(name, read_dataset("custom", str(bitmaps.parent), "a", None), batch_size=4, workers=1)
    list(training_batches(module))
    for path in sorted(bitmaps.glob("*/*")):
        again(path)
    assert "warning" not in capfd.readouterr().out
    list(training_batches(module, epoch=1))
    printed = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
    assert len(printed) == (name != "memory")
    assert all("was written again while the run went on, at its old length; if its pixels" in line for line in printed)


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.parametrize("name", ["stream", "torchvision", pytest.param("dali", marks=[*WITH_DALI, pytest.mark.slow])])
@pytest.mark.parametrize("how", ["vanishes", "grows", "other size"])
def test_every_pipeline_that_reads_files_each_epoch_names_one_that_changes_or_vanishes(bitmaps, name, how):
    module = build(name, read_dataset("custom", str(bitmaps.parent), "a", None), batch_size=4, workers=1)
    list(training_batches(module))
    path = bitmaps / "c1" / "3.bmp"
    if how == "vanishes":
        path.unlink()
    elif how == "grows":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        write_image(path, size=(30, 40))
    with pytest.raises(UserError) as e:
        list(training_batches(module, epoch=1))
    line = str(e.value).strip().splitlines()[-1]  # a worker process passes on the traceback too; run_cli prints this
    assert "c1/3.bmp" in line
    assert ("No such file" if how == "vanishes" else "changed while the run went on (from") in line


def test_read_dataset_says_what_a_folder_with_one_sub_folder_means(tmp_path):
    class_folders(tmp_path / "train", classes=1)
    (note,) = read_dataset("custom", str(tmp_path), None, None).notes
    assert "has one sub-folder, so all 6 images have one class" in note
    assert note.endswith(f"name {tmp_path}/train/c0 instead")


def test_a_stray_image_in_the_top_of_the_validation_folder_is_refused(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", each=2)
    stray = write_image(tmp_path / "val" / "stray.png")
    with pytest.raises(UserError) as e:
        read_dataset("custom", str(tmp_path), None, None)
    assert str(e.value).startswith(f"images such as {stray} lie in the top of {tmp_path}/val, so no validation image")
    assert len(str(e.value).splitlines()) == 1
    assert read_dataset("custom", str(tmp_path), None, None, unlabelled=True).val is None
    stray.unlink()
    assert read_dataset("custom", str(tmp_path), None, None).val.labels.tolist() == [0, 0, 1, 1]
    write_image(tmp_path / "train" / "stray.png")
    assert read_dataset("custom", str(tmp_path), None, None).val is None, "an unlabelled folder needs no labels"
