"""Tests of the images of the results: links to the images of the search, and parts of photographs."""

import numpy as np
from PIL import Image

from results import data
from results.rows import DATA, PHOTOGRAPHS


def test_images_of_the_search_are_the_first_and_the_last_of_each_class(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SEARCH_IMAGES", 2)
    monkeypatch.setattr(data, "HELD_OUT", 1)
    folder = tmp_path / DATA / "train" / "cat"
    folder.mkdir(parents=True)
    for n in (2, 0, 10, 1):
        (folder / f"{n}.jpg").write_text(str(n))
    data.link_search_images(tmp_path)
    data.link_search_images(tmp_path)
    found = {path.parent.parent.name: set() for path in (tmp_path / f"{DATA}-search").rglob("*.jpg")}
    for path in (tmp_path / f"{DATA}-search").rglob("*.jpg"):
        found[path.parent.parent.name].add(path.read_text())
    assert found == {"train": {"0", "1"}, "held_out": {"10"}}


def test_parts_of_photographs_cover_each_once(tmp_path):
    assert data.cut_photographs(tmp_path) == 0
    folder = tmp_path / data.WHOLE_PHOTOGRAPHS / "n01"
    folder.mkdir(parents=True)
    gray = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) * 16, np.ones((8, 10), np.uint8))
    Image.fromarray(gray).save(folder / "gray.JPEG", quality=95)
    assert data.cut_photographs(tmp_path) == 1
    parts = {split: sorted((tmp_path / PHOTOGRAPHS / split / "gray").iterdir()) for split in ("shown", "asked")}
    assert [len(paths) for paths in parts.values()] == [8, 8]
    values = {}
    for path in (*parts["shown"], *parts["asked"]):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((10, 8), "RGB")
            values[path.stem] = round(float(np.asarray(image).mean()) / 16)
    assert values == {f"{row}-{column}": 4 * row + column for row in range(4) for column in range(4)}
