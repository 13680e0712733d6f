"""Tests of features of a target on disk."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from data.pipelines.choose import build_pipeline
from data.views import ViewSpec
from evaluation.saved_features import (
    FeaturesSettings,
    cache_key,
    features,
    features_settings,
    load_or_extract,
)
from evaluation.settings import TrainingLabels
from evaluation.target import EvaluationTarget, NetworkInfo
from tests.helpers.evaluation import CPU, Pixels, target_of
from tests.helpers.images import class_folders, read
from utils.errors import UserError


def test_features_of_every_split_are_written_below_the_title(tmp_path):
    target = target_of(Pixels(), tmp_path, title="b, simclr")
    assert features(target, FeaturesSettings(None)) == []
    written = np.load(tmp_path / "features" / "b_simclr" / "val" / "features.npy")
    np.testing.assert_allclose(written, target.val.x)
    features(target, FeaturesSettings(tmp_path / "other"))
    assert len(np.load(tmp_path / "other" / "b_simclr" / "train" / "labels.npy")) == 1438


def test_load_or_extract_gives_read_only_features_beside_the_weights(tmp_path):
    target = target_of(Pixels(), tmp_path, images=100)
    found = load_or_extract(target, "train", None)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0
    assert len(list((tmp_path / "run" / "features").glob("train-*/features.npy"))) == 1


def test_float16_features_lie_beside_those_of_float32(tmp_path):
    target = target_of(Pixels(), tmp_path, images=100)
    single, half = (load_or_extract(target, "train", None, dtype) for dtype in ("float32", "float16"))
    assert (single.dtype, half.dtype) == (np.float32, np.float16)
    assert len(list((tmp_path / "run" / "features").glob("train-*/features.npy"))) == 2


def test_cache_key_depends_on_weights_layer_and_images(tmp_path):
    linear = torch.nn.Linear(2, 2)
    key = cache_key(target_of(linear, tmp_path), "train")
    assert key != cache_key(target_of(torch.nn.Linear(2, 2), tmp_path), "train")
    assert key != cache_key(target_of(linear, tmp_path, layer="layer2"), "train")
    assert key != cache_key(target_of(linear, tmp_path, images=100), "train")
    assert key == cache_key(target_of(linear, tmp_path), "train")


def test_features_settings_default_to_the_run_folder():
    labels = TrainingLabels(1, 0, 0, 0)
    flags = Namespace(features_dir=None, features_dtype="float32", features_format="npy")
    assert features_settings(flags, labels, print).features_dir is None


def folder_target(tmp_path):
    """A target on small images in class folders."""
    class_folders(tmp_path / "images" / "train", classes=2, each=2)
    class_folders(tmp_path / "images" / "val", classes=2, each=1, seed=9)
    data = read(str(tmp_path / "images"))
    module = build_pipeline("stream", data, [ViewSpec(32, count=2)], 3, 0, 0, None, "cpu")
    return EvaluationTarget(Pixels(), NetworkInfo("b, x", "b"), "custom", module, module, CPU, tmp_path)


def test_features_come_with_the_paths_of_their_images(tmp_path, capsys):
    features(folder_target(tmp_path), FeaturesSettings(None))
    root = tmp_path / "features" / "b_x"
    assert capsys.readouterr().out == f"  {root / 'train'}: 4 images\n  {root / 'val'}: 2 images\n"
    paths = (tmp_path / "features" / "b_x" / "train" / "paths.txt").read_text()
    assert paths == "c0/0.png\nc0/1.png\nc1/0.png\nc1/1.png\n"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_holds_every_image_with_its_vector(tmp_path, monkeypatch, capsys, dtype):
    pytest.importorskip("pyarrow", reason="pyarrow is in requirements-parquet.txt")
    from pyarrow import parquet

    monkeypatch.setattr("evaluation.saved_features.ROWS", 3)  # several groups
    target = folder_target(tmp_path)
    target.data.data.train.labels[1] = -1
    features(target, FeaturesSettings(None, dtype, "parquet"))
    table = parquet.read_table(tmp_path / "features" / "b_x" / "features.parquet")
    assert capsys.readouterr().out.endswith(f"  {tmp_path / 'features' / 'b_x' / 'features.parquet'}\n")
    assert table.column_names == ["path", "split", "label", "vector"]
    assert table["path"].to_pylist() == ["c0/0.png", "c0/1.png", "c1/0.png", "c1/1.png", "c0/0.png", "c1/0.png"]
    assert table["split"].to_pylist() == ["train"] * 4 + ["val"] * 2
    assert table["label"].to_pylist() == [0, None, 1, 1, 0, 1]
    assert json.loads(table.schema.metadata[b"classes"]) == ["c0", "c1"]
    expected = torch.cat([target.train.x, target.val.x]).numpy().astype(dtype)
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), expected)


def test_parquet_without_its_library_is_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flags = Namespace(features_dir=None, features_dtype="float32", features_format="parquet")
    with pytest.raises(UserError, match="needs pyarrow: pip install -r requirements-parquet.txt"):
        features_settings(flags, TrainingLabels(1, 0, 0, 0), print)
