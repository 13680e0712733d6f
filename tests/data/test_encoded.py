"""What all sources of encoded images share, on images that lie in a dictionary."""

import hashlib

import numpy as np
import pytest

import data.encoded
from data.encoded import EncodedImages, short_hash
from data.file_list import RowNames
from tests.helpers.images import write_image
from utils.errors import UserError


class DictionaryImages(EncodedImages):
    def __init__(self, content, labels):
        self.content_of, self.rows = content, np.arange(len(content))
        super().__init__("memory", RowNames(self.rows), np.array([*map(len, content)]), labels, ["a", "b"])

    PER_IMAGE = ("lengths", "rows")

    def content(self, i):
        return self.content_of[self.rows[i]]

    def stamps(self):
        return iter(["1"])


@pytest.fixture
def content(tmp_path):
    return [write_image(tmp_path / f"{i}.png", size=(20 + i, 16), seed=i).read_bytes() for i in range(6)]


def test_a_source_of_bytes_is_decoded_checked_and_without_its_bad_images(content):
    content[1], content[4] = b"", content[4][:100]
    images = DictionaryImages(content, [0, 0, 1, 1, 0, -1])
    with pytest.raises(UserError, match=r"2 of 6 images in memory are not readable images \(1, 4\); repair or remove"):
        images.check()
    kept, bad = images.readable()
    assert (kept.names[:], kept.labels.tolist()) == (["0", "2", "3", "5"], [0, 1, 1, -1])
    assert list(bad) == ["memory/1", "memory/4"]
    assert kept.sizes().tolist() == [[16, 20 + i] for i in (0, 2, 3, 5)]
    assert [kept.decode(i).shape[2] for i in range(4)] == [20, 22, 23, 25]
    assert kept.fingerprint() != images.fingerprint()
    assert (len(images), len(kept)) == (6, 4)


def test_an_image_of_another_size_than_before_is_refused(content):
    images = DictionaryImages(content, [0] * 6)
    images.check()
    content[2] = content[3]
    with pytest.raises(UserError, match=r"memory/2 changed while the run went on \(from 22 x 16 pixels to 23 x 16\)"):
        images.decode(2)


def test_losing_a_class_is_refused(content):
    content[5] = b"text"
    with pytest.raises(UserError, match="no file of b in memory is a readable image"):
        DictionaryImages(content, [0, 0, 0, -1, 0, 1]).readable()


def test_some_headers_of_a_very_large_source_are_read_once(content, monkeypatch):
    monkeypatch.setattr(data.encoded, "CHECKED", 5)
    monkeypatch.setattr(data.encoded, "HEADERS", 3)
    images, opened = DictionaryImages(content, [0, 0, 1, 1, 0, -1]), []
    monkeypatch.setattr(images, "opened", lambda i: opened.append(i) or EncodedImages.opened(images, i))
    images.check()
    assert images.some_headers().sizes.tolist() == [[16, 20], [16, 22], [16, 25]]
    assert sorted(opened) == [0, 2, 5]


def test_short_hash_of_parts_is_that_of_all_lines(monkeypatch):
    """Fingerprints are in checkpoints, so that they must not change."""
    lines = ["a 1 0", "\udcff 2 -1", "", "b"]
    whole = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    for at_once in (1, 2, 3, 4, 5):
        monkeypatch.setattr(data.encoded, "HASHED", at_once)
        assert short_hash(iter(lines)) == whole
    assert short_hash([]) == hashlib.sha256(b"").hexdigest()[:16]
