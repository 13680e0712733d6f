"""Tests of settings that depend on the labels."""

import pytest
import torch

from evaluation.settings import TrainingLabels, feasible_values
from utils.errors import UserError


def test_training_labels_count_labelled_images_and_the_smallest_class():
    labels = torch.tensor([0] * 30 + [1] * 6 + [-1] * 9)
    assert TrainingLabels.count(labels) == TrainingLabels(45, 36, 2, 6)
    assert TrainingLabels.count(labels[-9:]) == TrainingLabels(9, 0, 0, 0)


def test_feasible_values_keeps_feasible_defaults_with_a_note():
    notes = []
    assert feasible_values("k", None, (1, 5, 9), 5, "rows", notes.append) == (1, 5)
    assert notes == ["--k 9 left out: there are 5 rows"]
    assert feasible_values("k", [3, 5], (1,), 5, "rows", notes.append) == (3, 5)
    assert len(notes) == 1


def test_feasible_values_refuses_a_requested_value_that_is_not():
    with pytest.raises(UserError, match="--k 6 exceeds the 5 rows; lower it"):
        feasible_values("k", [2, 6], (1,), 5, "rows", print)
