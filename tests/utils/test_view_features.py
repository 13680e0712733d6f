"""Features of views, their pairs, and cosines over pairs."""

import pytest
import torch

from utils.view_features import ViewFeatures, coordinate_std, mean_cosine, view_pairs


def test_view_pairs_are_ordered_and_never_one_view_with_itself():
    assert view_pairs(["a", "b", "c"], ["A", "B"]) == [("b", "A"), ("c", "A"), ("a", "B"), ("c", "B")]


def test_view_features_all_is_large_then_small():
    assert ViewFeatures([1, 2], [3]).all == [1, 2, 3]


def test_mean_cosine_is_the_mean_over_pairs_of_different_views():
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert mean_cosine([x, y], [x, y]) == 0
    assert mean_cosine([x, y, x], [x, y]) == 0.25, "pairs (y, x), (x, x), (x, y) and (x, y): one cosine of four is 1"


def test_coordinate_std_ignores_the_length_of_vectors():
    z = torch.tensor([[5.0, 0.0], [-0.1, 0.0]])
    assert coordinate_std(z).item() == pytest.approx(2**0.5 / 2)
