"""Decoded images on disk: written once, found again, never wrong."""

import errno
import os

import numpy as np
import pytest
import torch

from data import decode_cache as cache_module
from data.datasets import read_dataset
from data.pipelines.memory import DecodedImages
from data.views import ViewSpec
from tests.helpers.disk import largest_file
from tests.helpers.images import class_folders, write_image
from tests.helpers.pipelines import build, equal_views, training_batches
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "PART", 5)
    class_folders(tmp_path / "x" / "train", each=6, size=(100, 50))
    return tmp_path


def images(folder):
    return read_dataset("custom", str(folder / "x"), None, None).train


class Counted:
    """Images that count how often they were decoded; decoding is interrupted after `at_most` images."""

    def __init__(self, images, at_most=10**9):
        self.images, self.labels, self.classes, self.root = images, images.labels, images.classes, images.root
        self.decoded, self.headers, self.at_most = 0, 0, at_most

    def __len__(self):
        return len(self.images)

    def fingerprint(self):
        return self.images.fingerprint()

    def state(self):
        return self.images.state()

    def sizes(self):
        self.headers += 1
        return self.images.sizes()

    def decode(self, i):
        self.decoded += 1
        if self.decoded > self.at_most:
            raise KeyboardInterrupt
        return self.images.decode(i)


def store(folder, at_most=10**9):
    counted = Counted(images(folder), at_most)
    return DecodedImages(counted, 32, folder / "cache").load(), counted


def files(folder):
    return {p.name: p.read_bytes() for p in (folder / "cache").rglob("*") if p.is_file() and p.name != "lock"}


def test_pixels_are_equal_with_a_cache_and_are_decoded_once(folder):
    uncached = DecodedImages(images(folder), 32).load()
    first, counted = store(folder)
    assert torch.equal(first.pixels, uncached.pixels)
    assert np.array_equal(first.ratio, uncached.ratio)
    assert (counted.decoded, counted.headers) == (12, 1)
    again, counted = store(folder)
    assert torch.equal(again.pixels, uncached.pixels)
    assert (counted.decoded, counted.headers) == (0, 0), "only the cache is read"


def test_pixels_of_an_interrupted_run_are_kept(folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        store(folder, at_most=7)
    whole, counted = store(folder)
    assert counted.decoded == 7, "the first part of five is there"
    assert torch.equal(whole.pixels, DecodedImages(images(folder), 32).load().pixels)


def test_cache_of_changed_images_is_another_one_and_the_old_one_is_named(folder, capsys):
    store(folder)
    before = files(folder)
    class_folders(folder / "x" / "train", each=7, size=(60, 80))
    changed, counted = store(folder)
    assert counted.decoded == 14
    assert torch.equal(changed.pixels, DecodedImages(images(folder), 32).load().pixels)
    assert "as it was before it changed" in capsys.readouterr().out
    assert set(before) <= set(files(folder))


@pytest.mark.parametrize("name", ["64x64.u8", "64x64.done", "sizes.npy"])
def test_cache_writes_a_truncated_file_again(folder, name):
    store(folder)
    path = next((folder / "cache").rglob(name))
    path.write_bytes(path.read_bytes()[:-1])
    whole, counted = store(folder)
    assert (counted.decoded, counted.headers) == ((0, 1) if name == "sizes.npy" else (12, 0))
    assert torch.equal(whole.pixels, DecodedImages(images(folder), 32).load().pixels)


def test_cache_writes_an_empty_file_of_sizes_again(folder):
    store(folder)
    next((folder / "cache").rglob("sizes.npy")).write_bytes(b"")
    assert store(folder)[1].headers == 1
    assert store(folder)[1].headers == 0


def test_cache_holds_images_for_views_of_several_sizes(folder):
    store(folder)
    other = DecodedImages(images(folder), 8, folder / "cache").load()
    assert other.pixels.shape == (12, 3, 16, 16)
    assert store(folder)[1].decoded == 0


def test_pixels_that_a_run_changes_do_not_reach_the_file(folder):
    first, _ = store(folder)
    first.pixels.zero_()
    assert store(folder)[0].pixels.any()


def test_cache_may_be_read_only_once_it_is_complete(folder):
    store(folder)
    for path in (folder / "cache").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert store(folder)[1].decoded == 0
    finally:
        for path in (folder / "cache").rglob("*"):
            path.chmod(0o755)


@pytest.mark.parametrize("name", ["64x64.u8", "sizes.npy"])
def test_cache_refuses_a_full_disk_and_leaves_nothing(folder, name):
    store(folder)
    path = next((folder / "cache").rglob(name))
    path.write_bytes(path.read_bytes()[:-1])
    room = 64 if name == "sizes.npy" else 1000
    with largest_file(room), pytest.raises(UserError, match=rf"cannot write .*{name} \(File too large\); .*free some"):
        store(folder)
    complete = {".u8", ".done"} if name == "sizes.npy" else set()  # the pixels are whole; only the sizes were damaged
    assert {path.suffix for path in (folder / "cache").rglob("*")} & {".u8", ".done", ".part"} == complete
    whole, _ = store(folder)
    assert torch.equal(whole.pixels, DecodedImages(images(folder), 32).load().pixels)


def test_cache_refuses_a_folder_that_cannot_be_made(folder):
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="name a folder that can be written to"):
        DecodedImages(images(folder), 32, folder / "file" / "cache")


@pytest.mark.parametrize("damaged", ["64x64.done", "sizes.npy"])
def test_cache_of_another_user_that_is_not_complete_is_one_line(folder, monkeypatch, damaged):
    store(folder)
    path = next((folder / "cache").rglob(damaged))
    path.write_bytes(path.read_bytes()[:-1])

    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent / "lock"))

    monkeypatch.setattr(cache_module, "FileLock", refused)
    with pytest.raises(
        UserError, match=r"^--cache .*/cache: Permission denied \(.*lock\); name a folder that can"
    ) as e:
        store(folder)
    assert len(str(e.value).splitlines()) == 1


def test_cache_whose_pixels_belong_to_another_user_is_one_line(folder, monkeypatch):
    store(folder)
    path = next((folder / "cache").rglob("64x64.done"))
    path.write_bytes(bytes(len(path.read_bytes())))  # nothing is marked as decoded
    real = np.memmap

    def refused(file, dtype, mode, **shape):
        if mode == "r+":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, dtype, mode, **shape)

    monkeypatch.setattr(np, "memmap", refused)
    with pytest.raises(UserError, match=r"^--cache .*/cache: Permission denied \(.*\); name a folder that can"):
        store(folder)


def test_cache_refuses_images_in_memory(tmp_path):
    with pytest.raises(UserError, match="has no effect on images that are not read from files"):
        DecodedImages(read_dataset("digits", "none", None, None).train, 32, tmp_path)


def test_views_of_a_run_with_a_cache_are_those_without(folder):
    data = read_dataset("custom", str(folder / "x"), None, None)
    specs = [ViewSpec(32, count=2)]
    a, b = (
        list(training_batches(build("memory", data, specs, batch_size=4, cache=cache)))
        for cache in (None, folder / "cache")
    )
    assert len(a) == len(b) == 3
    assert all(map(equal_views, a, b))


def opened(rank, world, folder):
    decoded, counted = store(folder)
    return counted.decoded, int(decoded.pixels.sum())


def test_processes_share_one_cache_and_decode_once(folder, ranks):
    class_folders(folder / "x" / "train", each=30, size=(100, 50))
    results = ranks(2).run(opened, folder)
    assert sorted(decoded for decoded, _ in results) == [0, 60]
    assert len({total for _, total in results}) == 1


def test_cache_notices_a_file_that_was_replaced_by_one_of_its_length(folder):
    store(folder)
    path = folder / "x" / "train" / "c0" / "0.png"
    before, fingerprint = path.stat(), images(folder).fingerprint()
    for seed in range(100, 400):  # another image of the same length
        write_image(path, size=(100, 50), seed=seed)
        if path.stat().st_size == before.st_size:
            break
    assert path.stat().st_size == before.st_size
    assert images(folder).fingerprint() == fingerprint, "a run may still be resumed"
    whole, counted = store(folder)
    assert counted.decoded == 12
    assert torch.equal(whole.pixels, DecodedImages(images(folder), 32).load().pixels)


@pytest.mark.parametrize("content", [b"PK\3\4", b"\x93NUMPY\1\0", b"text", b"\x80\4."])
@pytest.mark.parametrize("name", ["sizes.npy", "about.json"])
def test_cache_replaces_facts_that_were_tampered_with(folder, name, content):
    store(folder)
    next((folder / "cache").rglob(name)).write_bytes(content)
    class_folders(folder / "x" / "train", each=7, size=(60, 80))  # another cache: the old one is looked at
    store(folder)
    whole, _ = store(folder)
    assert torch.equal(whole.pixels, DecodedImages(images(folder), 32).load().pixels)


@pytest.mark.parametrize("sizes", [np.zeros((12, 2), int), np.ones(12, int), np.full((12, 2), 9.5)])
def test_cache_reads_sizes_that_cannot_be_again(folder, sizes):
    store(folder)
    np.save(next((folder / "cache").rglob("sizes.npy")), sizes)
    assert store(folder)[1].headers == 1
