"""Tests of the transform of features: principal components, unit length."""

import numpy as np
import pytest

from evaluation.feature_transform import FeatureTransform, TransformedFeatures
from utils.errors import UserError


def features():
    """40 rows whose columns have different variances."""
    return (np.random.default_rng(0).normal(size=(40, 6)) * [5, 1, 3, 0.1, 0.2, 2]).astype("f4")


def test_fit_finds_the_axes_of_the_largest_variance():
    x, rows = features(), np.arange(40)
    transform = FeatureTransform.fit(x, rows, 3)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f8")
    u, s, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(abs(TransformedFeatures(x, transform)[:]), abs(u * s)[:, :3], atol=1e-5)


def test_fit_without_components_scales_to_unit_length():
    x = features()
    transformed = TransformedFeatures(x, FeatureTransform.fit(x, np.arange(40), None))
    assert transformed.shape == (40, 6)
    np.testing.assert_allclose(np.linalg.norm(transformed[:], axis=1), 1, atol=1e-6)


def test_rows_are_transformed_when_they_are_indexed():
    x = features()
    transformed = TransformedFeatures(x, FeatureTransform.fit(x, np.arange(40), 3))
    assert (len(transformed), transformed.shape) == (40, (40, 3))
    np.testing.assert_allclose(transformed[[3, 7]], transformed[:][[3, 7]], atol=1e-6)


def test_fit_refuses_more_components_than_coordinates():
    with pytest.raises(UserError, match="--pca 7 of features with 6 coordinates and 40 rows; at most 6"):
        FeatureTransform.fit(features(), np.arange(40), 7)
