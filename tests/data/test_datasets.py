"""Data sets: what is read, and the errors when it cannot be read."""

import dataclasses
import errno
import os
import pickle

import numpy as np
import pytest
import torch

from data.datasets import DATASETS, read_dataset, training_set
from tests.helpers.images import class_folders, write_image
from utils.errors import UserError


def test_read_dataset_splits_the_digits_once():
    data = read_dataset("digits", "nowhere", None, None)
    assert (len(data.train), len(data.val), data.classes) == (1438, 359, 10)
    assert data.train.decode(0).shape == (3, 8, 8)
    both = torch.cat([data.train.pixels, data.val.pixels])
    assert both.max() == 255
    assert set(data.train.labels.tolist()) == set(range(10))
    mean, std = DATASETS["digits"].mean[0], DATASETS["digits"].std[0]
    assert data.train.pixels.float().mean().item() / 255 == pytest.approx(mean, abs=1e-3)
    assert data.train.pixels.float().std().item() / 255 == pytest.approx(std, abs=1e-3)


def test_read_dataset_reads_class_folders(tmp_path):
    class_folders(tmp_path / "train", classes=3)
    class_folders(tmp_path / "val", classes=2)
    write_image(tmp_path / "train" / "c1" / "deeper" / "9.png")
    (tmp_path / "train" / "c0" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data.classes == 3
    assert torch.bincount(data.train.labels).tolist() == [6, 7, 6]
    assert data.train.names == sorted(data.train.names)
    assert torch.bincount(data.val.labels).tolist() == [6, 6]


def test_read_dataset_notes_an_unusual_number_of_classes(tmp_path):
    class_folders(tmp_path / "a")
    data = read_dataset("cifar10", str(tmp_path), "a", None)
    assert data.classes == 2
    assert data.val is None
    assert data.mean == DATASETS["cifar10"].mean
    assert any("usually has 10 classes" in note for note in data.notes)


def test_read_dataset_notes_an_unlabelled_folder(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", seed=i)
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data.train.labels.tolist() == [-1] * 3
    assert not data.labelled
    assert any("unlabelled folder" in note for note in data.notes)


def broken_empty_class(root):
    class_folders(root / "train")
    (root / "train" / "empty").mkdir()


def broken_zero_bytes(root):
    (class_folders(root / "train") / "c1" / "3.png").write_bytes(b"")


def broken_no_image(root):
    (class_folders(root / "train") / "c1" / "3.png").write_bytes(b"this is text")


def broken_nothing(root):
    (root / "train").mkdir(parents=True)


def broken_unknown_class(root):
    class_folders(root / "train")
    class_folders(root / "val", classes=3)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (broken_empty_class, "class folder .*empty has no images"),
        (broken_zero_bytes, "1 of 12 files .* are not readable images .*3.png.*, or pass --on_bad_image skip"),
        (broken_no_image, "1 of 12 files .* are not readable images .*3.png"),
        (broken_nothing, "has no images and no class folders"),
        (broken_unknown_class, "has classes that the training folder lacks .*c2"),
    ],
)
def test_read_dataset_refuses_broken_folders(tmp_path, break_it, message):
    break_it(tmp_path)
    with pytest.raises(UserError, match=message):
        read_dataset("custom", str(tmp_path), None, None).train.sizes()


def test_read_dataset_names_missing_folders(tmp_path):
    with pytest.raises(UserError, match="--data_folder .*gone is not a folder"):
        read_dataset("imagenet100", str(tmp_path / "gone"), None, None)
    with pytest.raises(UserError, match="gone is not a folder; name the folder that holds the images"):
        read_dataset("custom", str(tmp_path / "gone"), None, None)
    with pytest.raises(UserError, match="no training images of imagenet100: .*train is not a folder; name it with"):
        read_dataset("imagenet100", str(tmp_path), None, None)
    class_folders(tmp_path / "a")
    with pytest.raises(UserError, match="--val_dir .*gone is not a folder"):
        read_dataset("imagenet100", str(tmp_path), "a", "gone")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_read_dataset_without_a_network_says_where_to_put_the_files(tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError, match=f"{tmp_path}.* cannot be downloaded .*; put .* there, or read class folders"):
        read_dataset(name, str(tmp_path), None, None)


def cifar10_files(root):
    """The files of CIFAR-10 as torchvision expects them, with 10 images each; their hashes are not looked at."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))


def test_read_dataset_reads_what_is_there_without_a_lock(tmp_path, monkeypatch):
    cifar10_files(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)

    def refused(*args, **kwargs):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("data.datasets.FileLock", refused)
    data = read_dataset("cifar10", str(tmp_path), None, None)
    assert (len(data.train), len(data.val)) == (50, 10)
    assert not list(tmp_path.glob(".*lock"))


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_read_dataset_refuses_to_download_into_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, error):
    def refused(*args, **kwargs):
        raise PermissionError(error, os.strerror(error))

    monkeypatch.setattr("data.datasets.FileLock", refused)
    with pytest.raises(
        UserError, match=rf"CIFAR10 is not in {tmp_path} and cannot be .*\({os.strerror(error)}\); "
    ) as e:
        read_dataset("cifar10", str(tmp_path), None, None)
    assert len(str(e.value).splitlines()) == 1


def test_read_dataset_refuses_a_file_in_place_of_the_folder_to_download_into(tmp_path):
    (tmp_path / "x").write_text("")
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(UserError, match=f"CIFAR10 is not in {path} and cannot be downloaded .*; name a folder"):
            read_dataset("cifar10", str(path), None, None)


def test_read_dataset_refuses_labels_beyond_the_classes(monkeypatch):
    few = dataclasses.replace(DATASETS["digits"], classes=7)
    monkeypatch.setitem(DATASETS, "digits", few)
    with pytest.raises(UserError, match="the training images of digits have labels up to 9, .* 7 classes, 0 to 6"):
        read_dataset("digits", "none", None, None)


def test_training_set_counts_images_labels_and_classes(tmp_path):
    data = read_dataset("digits", "none", None, None)
    facts = training_set("digits", data)
    assert (facts.name, facts.images, facts.labelled_images, facts.num_classes) == ("digits", 1438, 1438, 10)
    assert facts.fingerprint == data.train.fingerprint()
    write_image(tmp_path / "0.png")
    unlabelled = training_set("custom", read_dataset("custom", str(tmp_path), None, None))
    assert (unlabelled.images, unlabelled.labelled_images, unlabelled.num_classes) == (1, 0, 0)
