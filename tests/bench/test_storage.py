"""Tests of the forms in which the bench stores photographs: each has the images of the folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from bench import storage
from bench.sides import Settings
from bench.task import jpeg_files
from data.sources import Place, read_place
from data.tables import Columns


@pytest.fixture
def photographs(tmp_path):
    """Five photographs in class folders."""
    for i in range(5):
        folder = tmp_path / "photographs" / f"class-{i}"
        folder.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(folder / "a.jpg")
    return tmp_path / "photographs"


@pytest.mark.parametrize("write", [storage.write_shards, storage.write_parquet])
def test_packed_photographs_are_those_of_the_folders(photographs, tmp_path, monkeypatch, write):
    if write is storage.write_parquet:
        pytest.importorskip("datasets", reason="datasets is an optional requirement")
    monkeypatch.setattr(storage, "SHARD", 2)
    folder = tmp_path / "packed"
    folder.mkdir()
    write(jpeg_files(photographs), folder)
    packed, plain = (read_place(Place(place), Columns()) for place in (folder, photographs))
    assert len(packed) == len(plain) == 5
    assert all(torch.equal(packed.decode(i), plain.decode(i)) for i in range(5))


def test_each_side_decodes_all_photographs(photographs):
    for make in (storage.folders, storage.shards):
        work = make(Settings(photographs, None, 0.0))
        assert work.round() > 0
        assert work.facts() == {"images": 5}
