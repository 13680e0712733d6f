"""Tests of features on disk: order, resuming, refusals, numbers of processes."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evaluation.feature_files import fingerprint, read_features, write_features
from evaluation.features import extract
from tests.helpers.disk import largest_file
from tests.helpers.evaluation import Position, digits_module
from tests.helpers.mutations import apply, mutations
from utils.batch import Batch
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
    expected = extract(Position(), digits_module().eval_dataloader("val", CPU))
    got = saved(tmp_path / "f")
    np.testing.assert_allclose(got["features"], expected.x.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(got["labels"], expected.y.numpy())
    np.testing.assert_array_equal(got["indices"], np.arange(359))
    assert got["features"].dtype == np.float32


def test_float16_takes_half_the_space_and_is_rounded_to_2_to_the_minus_11(tmp_path):
    loader = digits_module().eval_dataloader("val", CPU)
    single, half = (read_features(write_features(Position(), loader, "val", tmp_path / dtype, ABOUT, dtype))
                    for dtype in ("float32", "float16"))  # fmt: skip
    assert (half.dtype, half.nbytes) == (np.float16, single.nbytes // 2)
    assert 0 < np.abs(half - single).max() <= 2**-11 * np.abs(single).max()
    write_features(Counts(), loader, "val", tmp_path / "float16", ABOUT, "float16")
    assert Counts.images == 0, "complete, and its checksums fit"
    for dtype, other in (("float32", "float16"), ("float16", "float32")):
        with pytest.raises(UserError, match=f"features of another dtype \\({dtype}, not {other}\\)"):
            write_features(Position(), loader, "val", tmp_path / dtype, ABOUT, other)


def test_files_of_before_float16_are_read_as_float32(tmp_path):
    loader = digits_module().eval_dataloader("val", CPU)
    write_features(Position(), loader, "val", tmp_path, ABOUT)
    key = json.loads((tmp_path / "cache_key.json").read_text())
    assert key.pop("dtype") == "float32"
    (tmp_path / "cache_key.json").write_text(json.dumps(key))
    write_features(Position(), loader, "val", tmp_path, ABOUT)
    with pytest.raises(UserError, match="features of another dtype"):
        write_features(Position(), loader, "val", tmp_path, ABOUT, "float16")


def test_a_feature_too_large_for_float16_is_refused(tmp_path):
    class Large(Position):
        def forward(self, x):
            return super().forward(x) + 7e4

    loader = digits_module().eval_dataloader("val", CPU)
    with pytest.raises(UserError, match=r"a feature of 7e\+04 does not fit in float16; leave --features_dtype out"):
        write_features(Large(), loader, "val", tmp_path / "half", ABOUT, "float16")
    write_features(Large(), loader, "val", tmp_path / "single", ABOUT)


def fails_on_a_rank(rank, world, folder):
    network = Dies() if rank == 1 else Position()
    with pytest.raises(RuntimeError, match="power cut"):
        write_features(network, digits_module(50).eval_dataloader("val", CPU), "val", folder, ABOUT)


def test_an_error_of_one_rank_is_an_error_of_all_and_no_rank_waits(tmp_path, ranks):
    ranks(2).run(fails_on_a_rank, tmp_path)


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
    assert (np.load(tmp_path / "checksums.npy") != 0).sum() == 200
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


class Twelve:
    """A loader of twelve random images in batches of four; it stops after `at_most` batches."""

    images = 12

    def __init__(self, at_most=3):
        self.at_most = at_most

    def __iter__(self):
        pixels = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for i in range(3):
            if i == self.at_most:
                raise KeyboardInterrupt
            rows = torch.arange(4 * i, 4 * i + 4)
            yield Batch(rows, [pixels[rows]], rows % 5)


def whole_and_half(folder):
    """Folders with all features of Twelve, and with those of the first two batches."""
    write_features(Position(), Twelve(), "val", folder / "whole", ABOUT)
    with pytest.raises(KeyboardInterrupt):
        write_features(Position(), Twelve(at_most=2), "val", folder / "half", ABOUT)
    return folder


def message_of(folder):
    """The one line with which the features of a folder are refused."""
    with pytest.raises(UserError) as e:
        write_features(Position(), Twelve(), "val", folder, ABOUT)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("state", ["whole", "half"])
@pytest.mark.parametrize("name", ["features", "labels", "indices", "checksums"])
@pytest.mark.parametrize("length", [0, 5, 100, -8, -1, 1])
def test_short_or_long_files_are_refused_by_name_and_left_as_they_are(tmp_path, state, name, length):
    path = whole_and_half(tmp_path) / state / f"{name}.npy"
    content = path.read_bytes()
    path.write_bytes(content + b"x" if length == 1 else content[:length])
    before = path.read_bytes()
    message = message_of(path.parent)
    assert str(path) in message
    assert "is damaged" in message
    assert "remove the folder to extract them again" in message
    assert path.read_bytes() == before, "not extended by zeros"


@pytest.mark.parametrize("state", ["whole", "half"])
@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("features", np.zeros((12, 2), "f8")),
        ("features", np.zeros((12, 3), "f4")),
        ("features", np.zeros((2, 12), "f4")),
        ("features", np.asfortranarray(np.ones((12, 2), "f4"))),
        ("features", np.ones(24, "f4")),
        ("labels", np.zeros(12, "i4")),
        ("checksums", np.ones(12, "u4")),
        ("checksums", np.ones(12, "u1")),
        ("indices", np.arange(11)),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, state, name, array):
    path = whole_and_half(tmp_path) / state / f"{name}.npy"
    np.save(path, array)
    message = message_of(path.parent)
    assert "is damaged" in message or "images, not 12" in message


def test_missing_file_is_refused_by_name(tmp_path):
    path = whole_and_half(tmp_path) / "whole" / "labels.npy"
    path.unlink()
    assert "labels.npy is damaged (" in message_of(path.parent)


def test_flipped_bit_in_a_feature_is_refused(tmp_path):
    path = whole_and_half(tmp_path) / "half" / "features.npy"
    content = bytearray(path.read_bytes())
    content[128 + 3 * 8 + 2] ^= 1  # of the fourth image
    path.write_bytes(content)
    assert "features.npy is damaged (the checksum of image 3 does not fit)" in message_of(path.parent)


def test_full_disk_is_one_line_before_anything_is_extracted_and_leaves_nothing(tmp_path):
    for room in (4, 200):  # bytes: too few for cache_key.json, and for features.npy
        with largest_file(room), pytest.raises(UserError, match=r"cannot write .* \(File too large\)"):
            write_features(Position(), Twelve(), "val", tmp_path / "f", ABOUT)
        assert not list((tmp_path / "f").iterdir())
    write_features(Position(), Twelve(), "val", tmp_path / "f", ABOUT)


def test_files_have_all_their_blocks_before_they_are_mapped(tmp_path):
    class Wide(nn.Module):
        def forward(self, x):
            assert len(x) == 1 or all(p.stat().st_blocks * 512 >= p.stat().st_size for p in tmp_path.glob("*.npy"))
            return torch.zeros(len(x), 10_000)

    write_features(Wide(), Twelve(), "val", tmp_path, ABOUT)
    assert (tmp_path / "features.npy").stat().st_size == 12 * 40_000 + 128


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return whole_and_half(tmp_path_factory.mktemp("features"))


def mutated_features_are_refused_or_right(original, state, name, changes):
    """Bytes of one file are changed, removed or added: an error of one line, or the features as they were."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(original / state, Path(parent) / "f"))
        path = folder / name
        path.write_bytes(apply(changes, path.read_bytes()))
        found, message = None, ""
        try:
            found = np.array(read_features(write_features(Position(), Twelve(), "val", folder, ABOUT)))
        except UserError as e:
            message = str(e)
    assert len(message.splitlines()) == (found is None)
    if found is not None:
        np.testing.assert_array_equal(found, np.load(original / "whole" / "features.npy"))


FILES = st.sampled_from([*(f"{n}.npy" for n in ("features", "labels", "indices", "checksums")), "cache_key.json"])
STATES = st.sampled_from(["whole", "half"])


@settings(max_examples=100, deadline=5000, derandomize=True)
@given(STATES, FILES, mutations())
def test_mutated_features_are_refused_or_right(original, state, name, changes):
    mutated_features_are_refused_or_right(original, state, name, changes)


@pytest.mark.slow
@settings(max_examples=3000, deadline=5000)
@given(STATES, FILES, mutations())
def test_thousands_of_mutated_features_are_refused_or_right(original, state, name, changes):
    mutated_features_are_refused_or_right(original, state, name, changes)
