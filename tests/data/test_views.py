"""From flags to the list of views."""

import pytest

from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from data.views import view_specs
from methods import METHODS


def specs(text, large=2):
    return view_specs(parse_pretraining(text.split(), METHODS, DATASETS), large)


def test_multi_crop_is_two_large_and_six_small():
    made = specs("imagenet resnet18 --small_views 6")
    assert [s.size for s in made] == [224] * 2 + [96] * 6
    assert [s.scale for s in made] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6


def test_one_large_view_for_a_method_that_wants_one():
    assert [s.size for s in specs("cifar10 resnet18 --method rotnet", large=1)] == [32]


@pytest.mark.parametrize(
    ("blur", "expected"),
    [("0.5", [0.5] * 6), ("1.0 0.1", [1.0, 0.1] * 3), ("1.0 0.1 0.5", [1.0, 0.1] + [0.5] * 4)],
)
def test_asymmetric_views_also_with_small_ones(blur, expected):
    assert [s.blur for s in specs(f"imagenet resnet18 --small_views 4 --blur {blur}")] == expected
    assert [s.solarize for s in specs(f"imagenet resnet18 --small_views 4 --solarize {blur}")] == expected


def test_the_papers_asymmetric_pair():
    a, b = specs("imagenet resnet18 --blur 1.0 0.1 --solarize 0.0 0.2")
    assert (a.blur, a.solarize, b.blur, b.solarize) == (1.0, 0.0, 0.1, 0.2)
