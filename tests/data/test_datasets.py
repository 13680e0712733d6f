"""Data sets: what is read, and what a user is told when it cannot be."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import DATASETS, read_dataset
from data.folder import read_folder
from data.images import decode_file
from tests.helpers.images import class_folders, write_image
from utils.errors import UserError


def test_digits_are_real_and_split_once():
    data = read_dataset("digits", "nowhere", None, None)
    assert (len(data.train), len(data.val), data.classes) == (1438, 359, 10)
    assert data.train.decode(0).shape == (3, 8, 8)
    both = torch.cat([data.train.pixels, data.val.pixels])
    assert both.max() == 255
    assert set(data.train.labels.tolist()) == set(range(10))
    mean, std = DATASETS["digits"].mean[0], DATASETS["digits"].std[0]
    assert data.train.pixels.float().mean().item() / 255 == pytest.approx(mean, abs=1e-3)
    assert data.train.pixels.float().std().item() / 255 == pytest.approx(std, abs=1e-3)


def test_class_folders(tmp_path):
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


def test_any_data_set_reads_class_folders_and_tells_an_unusual_number_of_classes(tmp_path):
    class_folders(tmp_path / "a")
    data = read_dataset("cifar10", str(tmp_path), "a", None)
    assert data.classes == 2
    assert data.val is None
    assert data.mean == DATASETS["cifar10"].mean
    assert any("usually has 10 classes" in note for note in data.notes)


def test_a_pile_has_no_labels_and_says_so(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", seed=i)
    data = read_dataset("custom", str(tmp_path), None, None)
    assert data.train.labels.tolist() == [-1] * 3
    assert not data.labelled
    assert any("without labels" in note for note in data.notes)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1"])
def test_modes_become_rgb(tmp_path, mode):
    path = write_image(tmp_path / "x.png", mode)
    image = decode_file(str(path))
    assert image.shape == (3, 16, 20)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(path).convert("RGB")))


def test_cmyk(tmp_path):
    image = decode_file(str(write_image(tmp_path / "x.jpg", "CMYK")))
    assert image.shape == (3, 16, 20)
    assert image.float().std() > 10


def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    image = decode_file(str(tmp_path / "x.png"))
    assert image[0].flatten().tolist() == list(range(256))
    assert torch.equal(image[0], image[2])


def broken_empty_class(root):
    class_folders(root / "train")
    (root / "train" / "empty").mkdir()


def broken_zero_bytes(root):
    (class_folders(root / "train") / "c1" / "3.png").write_bytes(b"")


def broken_no_image(root):
    (class_folders(root / "train") / "c1" / "3.png").write_bytes(b"this is text")


def broken_nothing(root):
    (root / "train").mkdir(parents=True)


def broken_strange_class(root):
    class_folders(root / "train")
    class_folders(root / "val", classes=3)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (broken_empty_class, "class folder .*empty has no images"),
        (broken_zero_bytes, "1 of 12 files .* are not readable images .*3.png.*, or pass --on_bad_image skip"),
        (broken_no_image, "1 of 12 files .* are not readable images .*3.png"),
        (broken_nothing, "has no images and no class folders"),
        (broken_strange_class, "has classes that the training folder lacks .*c2"),
    ],
)
def test_broken_folders(tmp_path, break_it, message):
    break_it(tmp_path)
    with pytest.raises(UserError, match=message):
        read_dataset("custom", str(tmp_path), None, None).train.sizes()


def test_truncated_image_is_named(tmp_path):
    path = write_image(tmp_path / "x.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"x.jpg is not a readable image"):
        decode_file(str(path))


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="--data_folder .*gone is not a folder"):
        read_dataset("imagenet100", str(tmp_path / "gone"), None, None)
    with pytest.raises(UserError, match="no training images of imagenet100: .*train is not a folder; name it with"):
        read_dataset("imagenet100", str(tmp_path), None, None)
    class_folders(tmp_path / "a")
    with pytest.raises(UserError, match="--val_dir .*gone is not a folder"):
        read_dataset("imagenet100", str(tmp_path), "a", "gone")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_without_a_network_the_error_says_where_to_put_what(tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError, match=f"{tmp_path}.* cannot be downloaded .*; put .* there, or read class folders"):
        read_dataset(name, str(tmp_path), None, None)


def test_fingerprint_tells_data_apart(tmp_path):
    a = read_folder(class_folders(tmp_path / "a")).fingerprint()
    assert a == read_folder(class_folders(tmp_path / "b")).fingerprint()
    write_image(tmp_path / "b" / "c0" / "0.png", size=(30, 30))
    assert a != read_folder(tmp_path / "b").fingerprint()
    digits = read_dataset("digits", "none", None, None)
    assert digits.train.fingerprint() != digits.val.fingerprint()


def test_labels_beyond_the_classes_are_refused(monkeypatch):
    few = dataclasses.replace(DATASETS["digits"], classes=7)
    monkeypatch.setitem(DATASETS, "digits", few)
    with pytest.raises(UserError, match="the training images of digits have labels up to 9, .* 7 classes, 0 to 6"):
        read_dataset("digits", "none", None, None)
