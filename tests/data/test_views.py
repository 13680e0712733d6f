"""View specifications of a plan."""

import dataclasses

import pytest

from data.views import ViewSpec, expand, view_specs
from utils.plan import ViewsConfig

CONFIG = ViewsConfig(
    large_size=224, crop_scale=(0.2, 1.0), small_views=0, small_size=96, small_scale=(0.05, 0.14), flip=0.5,
    jitter=0.8, jitter_strengths=(0.4, 0.3, 0.2, 0.1), gray=0.2, blur=(0.5,), solarize=(0.0,),
)  # fmt: skip


def specs(large=2, **changes):
    return view_specs(dataclasses.replace(CONFIG, **changes), large)


def test_view_specs_put_large_views_before_small_ones():
    made = specs(small_views=6, crop_scale=(0.14, 1.0))
    assert [s.size for s in made] == [224] * 2 + [96] * 6
    assert [s.scale for s in made] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6


def test_view_specs_carry_every_setting():
    (spec,) = specs(large=1)
    assert spec == ViewSpec(224, (0.2, 1.0), 0.5, 0.8, 0.4, 0.3, 0.2, 0.1, 0.2, 0.5, 0.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0.5,), [0.5] * 6), ((1.0, 0.1), [1.0, 0.1] * 3), ((1.0, 0.1, 0.5), [1.0, 0.1] + [0.5] * 4)],
)
def test_view_specs_give_each_view_its_probability(values, expected):
    assert [s.blur for s in specs(small_views=4, blur=values)] == expected
    assert [s.solarize for s in specs(small_views=4, solarize=values)] == expected


def test_blur_taps_are_an_odd_tenth_of_the_view():
    assert [ViewSpec(size).blur_taps for size in (8, 32, 96, 224)] == [3, 3, 9, 23]


def test_expand_repeats_a_spec_count_times():
    assert [s.size for s in expand([ViewSpec(8, count=2), ViewSpec(4)])] == [8, 8, 4]
