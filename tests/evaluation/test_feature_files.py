"""Tests of features on disk: order, resuming, refusals, numbers of processes."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.feature_files import fingerprint, write_features
from evaluation.features import extract
from tests.helpers.evaluation import Position, digits_module
from utils.errors import UserError

CPU = torch.device("cpu")
ABOUT = {"weights": "abc", "size": 32}


def saved(folder):
    return {name: np.load(folder / f"{name}.npy") for name in ("features", "labels", "indices")}


def write(rank, world, folder):
    write_features(Position(), digits_module().eval_dataloader("val", CPU), "val", folder, ABOUT)


@pytest.mark.parametrize("world", [1, 3])
def test_write_features_does_not_depend_on_the_number_of_processes(tmp_path, ranks, world):
    ranks(world).run(write, tmp_path / "f")
    wanted = extract(Position(), digits_module().eval_dataloader("val", CPU))
    got = saved(tmp_path / "f")
    np.testing.assert_allclose(got["features"], wanted.x.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(got["labels"], wanted.y.numpy())
    np.testing.assert_array_equal(got["indices"], np.arange(359))
    assert got["features"].dtype == np.float32


class Dies(Position):
    """Fails at the third batch."""

    seen = 0

    def forward(self, x):
        Dies.seen += len(x) > 1  # the first image alone is asked for the width
        if Dies.seen > 2:
            raise RuntimeError("power cut")
        return super().forward(x)


class Counts(Position):
    images = 0

    def forward(self, x):
        Counts.images += len(x)
        return super().forward(x)


def test_write_features_resumes_an_interrupted_extraction(tmp_path):
    loader = digits_module().eval_dataloader("val", CPU)
    with pytest.raises(RuntimeError, match="power cut"):
        write_features(Dies(), loader, "val", tmp_path, ABOUT)
    assert np.load(tmp_path / "done.npy").sum() == 200
    write_features(Counts(), loader, "val", tmp_path, ABOUT)
    assert Counts.images == 159, "only what was missing"
    np.testing.assert_allclose(saved(tmp_path)["features"], extract(Position(), loader).x.numpy(), rtol=1e-6)


def test_write_features_refuses_a_folder_of_other_features(tmp_path):
    loader = digits_module().eval_dataloader("val", CPU)
    write_features(Position(), loader, "val", tmp_path / "a", ABOUT)
    with pytest.raises(UserError, match=r"features of another weights \(abc, not xyz\); name another --features_dir"):
        write_features(Position(), loader, "val", tmp_path / "a", ABOUT | {"weights": "xyz"})
    assert json.loads((tmp_path / "a" / "cache_key.json").read_text())["weights"] == "abc"
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "mine.npy", np.zeros(3))
    with pytest.raises(UserError, match="holds .npy files of another program"):
        write_features(Position(), loader, "val", tmp_path / "b", ABOUT)


def test_fingerprint_depends_on_every_weight():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b)
    with torch.no_grad():
        b.bias[1] += 1e-6
    assert fingerprint(a) != fingerprint(b)
