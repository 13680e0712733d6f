"""The evaluation of quality; its formulas are in tests/utils/test_feature_quality.py."""

from types import SimpleNamespace

import pytest
import torch

from evaluation.quality import ROWS, WIDEST, QualitySettings, quality
from utils.feature_quality import quality_numbers


def target(x, val=True):
    split = SimpleNamespace(x=x)
    pair = x[:4], x[4:8]
    return SimpleNamespace(train=split, val=split if val else None, two_views=lambda: pair)


@pytest.mark.parametrize("val", [True, False])
def test_quality_names_the_numbers_of_the_features(val):
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    scores = quality(target(x, val), QualitySettings())
    assert {s.name: s.value for s in scores} == {
        f"quality/{k}": v for k, v in quality_numbers(x, (x[:4], x[4:8])).items()
    }
    assert {s.unit for s in scores} == {""}


def test_large_sets_are_sampled_and_very_wide_features_have_no_quality(monkeypatch):
    monkeypatch.setattr("evaluation.quality.quality_numbers", lambda x, pair: {"rows": float(len(x))})
    assert quality(target(torch.ones(ROWS + 7, 2)), QualitySettings())[0].value == ROWS
    assert quality(target(torch.ones(9, WIDEST + 1)), QualitySettings()) == []
