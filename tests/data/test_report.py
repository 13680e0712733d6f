"""The report of a data set."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import Data, read_dataset
from data.images import ArrayImages
from data.report import AT_START, data_report, image_notes, view_size_notes
from data.scan import read_endings
from tests.helpers.images import read, write_image
from tests.helpers.pipelines import smooth_image

VIEWS = SimpleNamespace(large_size=32)
DIGITS = read()


@pytest.fixture
def folder(tmp_path):
    """Unbalanced classes with an equal image, a nearly equal one, a leak, and files that are no images."""
    for seed, (name, count) in enumerate((("cat", 30), ("dog", 2))):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            smooth_image((60 + i, 50), 500 * seed + i).save(tmp_path / "train" / name / f"{i:02}.png")
    shutil.copy(tmp_path / "train" / "cat" / "03.png", tmp_path / "train" / "cat" / "again.png")
    Image.open(tmp_path / "train" / "cat" / "04.png").save(tmp_path / "train" / "cat" / "saved.jpg", quality=75)
    for name in ("a.txt", "b.txt", "clip.mp4", ".hidden.db", "README"):
        (tmp_path / "train" / "dog" / name).write_text("x")
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        smooth_image((55, 50), 900 + len(name) + ord(name[0])).save(tmp_path / "val" / name / "v.png")
    shutil.copy(tmp_path / "train" / "cat" / "05.png", tmp_path / "val" / "cat" / "leak.png")
    return read_dataset("custom", str(tmp_path), None, None)


def test_report_counts_classes_sizes_skipped_files_and_copies(folder):
    report = data_report(folder)
    train = report.splits["train"]
    assert (train.images, train.labelled, train.counts) == (34, 34, {"cat": 32, "dog": 2})
    assert train.skipped == {".txt": 2, ".mp4": 1, "": 1}
    assert (train.sizes[:, 0] == 50).all()
    assert (train.sizes[:, 1].min(), train.sizes[:, 1].max()) == (60, 89)
    names = folder.train.names
    assert [{names[i], names[j]} for i, j in train.copies.equal] == [{"cat/03.png", "cat/again.png"}]
    assert [{names[i], names[j]} for i, j in train.copies.near] == [{"cat/04.png", "cat/saved.jpg"}]
    ((row, other),) = report.leaked.equal
    assert (folder.val.names[row], names[other]) == ("cat/leak.png", "cat/05.png")
    assert report.leaked.near == []
    assert (report.leaked.images, report.leaked.among) == (3, 34)


def test_notes_at_the_start_name_what_is_unusual(folder):
    notes = " | ".join(image_notes(folder, SimpleNamespace(large_size=224)))
    assert "views of 224 px enlarge the images, whose short side is 50 px" in notes
    assert "unbalanced: 32 images of cat, 2 of dog" in notes
    assert "skipped: 2 .txt, 1 without ending, 1 .mp4" in notes
    assert "of 34 training images, 1 are equal and 1 nearly equal" in notes


def test_images_of_all_formats_that_are_read_are_not_said_to_be_skipped(tmp_path):
    assert ".avif" in read_endings()
    for i in range(3):
        smooth_image((40, 40), i).save(tmp_path / f"{i}.avif")
    (tmp_path / "a.txt").write_text("x")
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data_report(data).splits["train"].skipped == {".txt": 1}


def test_files_below_the_folder_of_a_table_are_not_counted(folder, tmp_path):
    (tmp_path / "train.csv").write_text("path,label\ntrain/cat/03.png,cat\ntrain/dog/01.png,dog\n")
    data = read_dataset("custom", str(tmp_path / "train.csv"), None, None)
    assert data_report(data).splits["train"].skipped == {}
    assert not any("skipped" in note for note in image_notes(data, VIEWS))
    kept = read_dataset("custom", str(tmp_path), None, None, "skip").train
    assert data_report(Data(kept, None, 2, (0.5,) * 3, (0.2,) * 3, [])).splits["train"].skipped[".txt"] == 2


def test_notes_are_silent_on_images_that_are_fine():
    assert image_notes(DIGITS, VIEWS) == []
    report = data_report(DIGITS)
    assert report.splits["train"].copies.equal == report.leaked.equal == []
    assert len(report.splits["train"].copies.near) <= 1, "two people drew the same 1"
    assert report.splits["val"].counts.keys() == {str(digit) for digit in range(10)}


def test_the_look_at_the_start_is_bounded_and_finds_copies_side_by_side(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3000, 3, 12, 12), generator=generator, dtype=torch.uint8)
    pixels[1::2] = pixels[::2]
    data = Data(ArrayImages(pixels, torch.arange(3000) % 2), None, 2, (0.5,) * 3, (0.2,) * 3, [])
    (note,) = image_notes(data, VIEWS)
    found = int(note.split(" are equal")[0].split()[-1])
    assert f"of {AT_START:,} training images" in note or "training images" in note
    assert found > AT_START / 5
    looked = data_report(data, most=100, seconds=30).splits["train"].copies
    assert looked.images <= 100


def test_a_look_without_time_finds_nothing(folder):
    report = data_report(folder, seconds=0)
    assert [split.copies.images for split in report.splits.values()] == [0, 0]
    assert report.splits["train"].copies.equal == report.leaked.equal == []


@pytest.mark.parametrize(
    ("side", "large", "phrase"),
    [(28, 32, ""), (32, 64, "enlarge"), (256, 224, ""), (200, 224, "enlarge"), (4000, 224, "shrink")],
)
def test_view_sizes_are_compared_with_the_short_side_of_images(side, large, phrase):
    notes = view_size_notes(np.array([[side, 2 * side]] * 3), SimpleNamespace(large_size=large))
    assert bool(notes) == bool(phrase)
    assert not phrase or phrase in notes[0]


def test_an_unlabelled_folder_has_no_classes(tmp_path):
    for i in range(6):
        write_image(tmp_path / f"{i}.png", seed=i)
    data = read_dataset("custom", str(tmp_path), None, None)
    report = data_report(data)
    assert (report.splits["train"].labelled, report.splits["train"].counts, report.leaked) == (0, {}, None)
