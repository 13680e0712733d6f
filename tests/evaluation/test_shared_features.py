"""Tests of features in one copy on each machine: values, files, a disk without room."""

import contextlib
import io
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from evaluation import shared_features
from evaluation.features import extract
from evaluation.shared_features import create_npy
from tests.helpers.disk import full_disk
from tests.helpers.evaluation import CPU, Position, digits_module


def extract_digits():
    features = extract(Position(), digits_module().eval_dataloader("val", CPU))
    return features.x, features.y


def mapped_files(x):
    """The files of which the memory of a tensor is a map."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= x.data_ptr() < stop:
            found += line.split(maxsplit=5)[5:]
    return found


def share_digits(rank, world, folder, machines):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_features, "_machine", lambda: f"machine {rank % machines}")
        features = extract(Position(), digits_module().eval_dataloader("val", CPU), folder=folder)
    features.x[rank] += 0  # a page of one's own: others do not see what a rank writes
    return features.x, features.y, mapped_files(features.x[300:])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps of a process are read from Linux's /proc")
@pytest.mark.parametrize("machines", [1, 2])
def test_ranks_share_one_copy_of_the_features_on_each_machine(tmp_path, ranks, machines):
    x, y = extract_digits()
    found = ranks(3).run(share_digits, tmp_path, machines)
    for other_x, other_y, _ in found:
        torch.testing.assert_close(other_x, x)
        assert torch.equal(other_y, y)
    files = [file[0].removesuffix(" (deleted)") for _, _, file in found]
    assert all(Path(file).parent == tmp_path for file in files)
    assert len(set(files)) == machines
    assert list(tmp_path.iterdir()) == [], "the file has no name any more"


def features_without_room(rank, world, folder):
    loader = digits_module().eval_dataloader("val", CPU)
    # A limit on the size of files would meet the file in which these processes find each other too.
    with mock.patch("utils.files.allocate", full_disk), contextlib.redirect_stdout(io.StringIO()) as printed:
        return extract(Position(), loader, folder=folder).x, printed.getvalue()


def test_ranks_keep_copies_where_the_disk_has_no_room(tmp_path, ranks):
    x, _ = extract_digits()
    for other, printed in ranks(2).run(features_without_room, tmp_path):
        torch.testing.assert_close(other, x)
        assert f"no room for 2.87e-06 GB of features in {tmp_path}; each process keeps a copy" in printed
    assert list(tmp_path.iterdir()) == []


def test_create_npy_makes_zeros_that_numpy_reads(tmp_path):
    create_npy(tmp_path / "x.npy", (3, 5), "f2")
    x = np.load(tmp_path / "x.npy")
    assert (x.shape, x.dtype, x.any()) == ((3, 5), np.float16, False)
