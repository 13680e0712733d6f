"""Folders of image files: names, labels, fingerprints, and the files that are left out."""

import pytest

from data.datasets import read_dataset
from data.folder import preview, read_folder
from tests.helpers.images import class_folders, write_image
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
