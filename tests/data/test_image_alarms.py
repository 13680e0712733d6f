"""What is wrong with images before training."""

import shutil
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from data.datasets import read_dataset
from data.image_alarms import BLOCK, VALIDATION, image_alarms, read_blocks
from data.images import ArrayImages
from tests.helpers.images import class_folders, read, write_image
from tests.helpers.pipelines import photograph_folder, smooth_image

LEAK = "validation images among the training images"
DIGITS = read()  # here: importing scikit-learn changes the environment, which no test may do


def noise(n, seed=0, size=12):
    g = torch.Generator().manual_seed(seed)
    return ArrayImages(torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8), torch.arange(n) % 2)


def test_nothing_is_said_of_images_that_are_fine(tmp_path):
    assert image_alarms(DIGITS.train, DIGITS.val) == {}
    assert image_alarms(DIGITS.train, None) == {}
    data = photograph_folder(tmp_path)
    assert image_alarms(data.train, data.val) == {}


def test_equal_images_are_found_and_named(tmp_path):
    class_folders(tmp_path / "train", each=30)
    for i in range(10):
        write_image(tmp_path / "val" / "c0" / f"{i}.png", seed=1000 + i)
    (tmp_path / "val" / "c1").mkdir()
    shutil.copy(tmp_path / "train" / "c1" / "7.png", tmp_path / "val" / "c1" / "renamed.png")
    Image.open(tmp_path / "train" / "c0" / "3.png").save(tmp_path / "val" / "c0" / "format.bmp")
    data = read_dataset("custom", str(tmp_path), None, None)
    text = image_alarms(data.train, data.val)[LEAK]
    assert "of 12 validation images, 2 are equal and 0 nearly equal to one of 60 training images" in text
    assert "val/c1/renamed.png is " in text
    assert "train/c1/7.png" in text
    assert "train/c0/3.png" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda image, path: image.save(path.with_suffix(".jpg"), quality=75),
        lambda image, path: image.resize((150, 130)).save(path),
        lambda image, path: image.resize((60, 52)).save(path),
        lambda image, path: image.point(lambda v: int(0.8 * v + 20)).save(path),
    ],
    ids=["saved as JPEG", "larger", "smaller", "paler"],
)
def test_altered_copies_are_nearly_equal(tmp_path, change):
    for i in range(20):
        (tmp_path / "train" / "c").mkdir(parents=True, exist_ok=True)
        smooth_image((100, 90), i).save(tmp_path / "train" / "c" / f"{i}.png")
    (tmp_path / "val" / "c").mkdir(parents=True)
    for i in range(15, 25):
        change(smooth_image((100, 90), i), tmp_path / "val" / "c" / f"{i}.png")
    data = read_dataset("custom", str(tmp_path), None, None)
    text = image_alarms(data.train, data.val)[LEAK]
    assert "of 10 validation images, 0 are equal and 5 nearly equal" in text


def test_few_duplicates_among_many_images_are_not_said():
    train, val = noise(1000), noise(800, seed=1)
    for count, said in ((3, False), (4, True)):
        val.pixels[:count] = train.pixels[-count:]
        assert (LEAK in image_alarms(train, val)) == said


def test_leak_of_large_sets_is_found_in_a_sample():
    train = noise(3 * BLOCK)
    text = image_alarms(train, ArrayImages(train.pixels[: VALIDATION + 9], train.labels[: VALIDATION + 9]))[LEAK]
    assert f"of {VALIDATION:,} validation images, {VALIDATION:,} are equal" in text
    assert "image 0 is image 0" in text


def test_images_of_one_colour_and_images_that_repeat():
    train = noise(40)
    train.pixels[:3] = torch.randint(0, 256, (3, 3, 1, 1), dtype=torch.uint8)
    assert image_alarms(train, None) == {}
    train.pixels[3] = 5
    assert image_alarms(train, None) == {
        "images of one colour": "4 of 40 training images have one colour (image 0, image 1, image 2); look at them: "
        "are they what they should be?"
    }
    train = noise(40)
    train.pixels[21:] = train.pixels[0]
    assert image_alarms(train, None) == {}
    train.pixels[1:] = train.pixels[0]
    text = image_alarms(train, None)["identical images"]
    assert text.startswith("1 of 40 training images are different;")


def test_flat_images_are_near_to_none():
    train, val = noise(50), noise(50, seed=1)
    train.pixels[:4], val.pixels[:4] = 7, 8
    assert image_alarms(train, val) == {}
    val.pixels[:4] = 7
    assert "4 are equal" in image_alarms(train, val)[LEAK]


def test_the_look_ends_with_its_time_and_passes_over_unreadable_files(tmp_path, monkeypatch):
    class_folders(tmp_path, each=40)
    data = read_dataset("custom", str(tmp_path), None, None)
    decode = data.train.decode
    monkeypatch.setattr(data.train, "decode", lambda i: time.sleep(0.05) or decode(i))
    start = time.monotonic()
    assert image_alarms(data.train, data.train, seconds=0.2).keys() <= {LEAK}
    assert time.monotonic() - start < 1
    (tmp_path / "c0" / "1.png").write_bytes(b"gone")
    assert image_alarms(data.train, None, seconds=0) == {}
    assert image_alarms(DIGITS.train, None, seconds=0) == {}


def test_thumbnails_of_any_size_compare():
    small = noise(12, size=8)
    large = ArrayImages(TF.resize(small.pixels, [32, 32], interpolation=TF.InterpolationMode.NEAREST), small.labels)
    assert "0 are equal and 12 nearly equal" in image_alarms(large, small)[LEAK]
    assert np.prod(large.pixels.shape[2:]) > np.prod(small.pixels.shape[2:])


def test_decoded_images_are_let_go_where_they_were_decoded(tmp_path, monkeypatch):
    class_folders(tmp_path, each=40)
    images = read_dataset("custom", str(tmp_path), None, None).train
    decode, lock, alive, most = images.decode, threading.Lock(), set(), []

    def counted(i):
        image = decode(i)
        with lock:
            alive.add(i)
            most.append(len(alive))
        weakref.finalize(image, alive.discard, i)
        return image

    monkeypatch.setattr(images, "decode", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    (block,) = read_blocks(images, list(range(len(images))), time.monotonic() + 60)
    assert (block.rows, len(block.digests)) == (list(range(80)), 80)
    assert max(most) <= 4, "two threads hold one each, and may begin the next one"


def test_summaries_of_images_of_several_sizes_are_in_their_order(tmp_path):
    for i, size in enumerate(((20, 30), (40, 30), (20, 30))):
        smooth_image(size, i).save(tmp_path / f"{i}.png")
    images = read_dataset("custom", str(tmp_path), None, None).train
    (block,) = read_blocks(images, [2, 0, 1], time.monotonic() + 60)
    assert block.rows == [2, 0, 1]
    assert block.thumbnails.shape == (3, 256)
    assert block.one_colour.tolist() == [False] * 3
    assert len(set(block.digests)) == 3
