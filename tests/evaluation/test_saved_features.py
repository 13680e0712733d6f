"""Tests of features of a target on disk."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from evaluation.saved_features import (
    FeaturesSettings,
    cache_key,
    features,
    features_settings,
    load_or_extract,
)
from evaluation.settings import TrainingLabels
from tests.helpers.evaluation import Pixels, target_of


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
