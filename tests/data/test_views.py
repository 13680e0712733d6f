"""View specifications of a plan."""

import dataclasses
import shlex
import zlib

import numpy as np
import pytest

from cli.plan import resolve
from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from data.sampler import sample
from data.views import ViewSpec, expand, view_specs
from methods import METHODS
from utils.plan import TrainingSet, ViewsConfig

CONFIG = ViewsConfig(
    large_size=224, crop_scale=((0.2, 1.0),), small_views=0, small_size=96, small_scale=(0.05, 0.14), flip=0.5,
    jitter=(0.8,), jitter_strengths=((0.4, 0.3, 0.2, 0.1),), gray=(0.2,), blur=(0.5,), solarize=(0.0,),
)  # fmt: skip


def specs(large=2, **changes):
    return view_specs(dataclasses.replace(CONFIG, **changes), large)


def test_view_specs_put_large_views_before_small_ones():
    made = specs(small_views=6, crop_scale=((0.14, 1.0),))
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
    for name in ("jitter", "gray", "blur", "solarize"):
        assert [getattr(s, name) for s in specs(small_views=4, **{name: values})] == expected


def test_view_specs_of_one_large_view_give_small_views_the_second_value():
    assert [s.gray for s in specs(large=1, small_views=3, gray=(0.0, 0.5))] == [0.0, 0.5, 0.5, 0.5]


def test_view_specs_give_each_large_view_its_crop_scale():
    made = specs(small_views=2, crop_scale=((0.4, 1.0), (0.1, 0.5)))
    assert [s.scale for s in made] == [(0.4, 1.0), (0.1, 0.5), (0.05, 0.14), (0.05, 0.14)]


def test_view_specs_give_each_view_its_strengths():
    own = ((0.4, 0.3, 0.2, 0.1), (0.8, 0.7, 0.6, 0.5), (0.0, 0.1, 0.0, 0.2))
    made = specs(small_views=2, jitter_strengths=own)
    assert [(s.brightness, s.contrast, s.saturation, s.hue) for s in made] == [own[0], own[1], own[2], own[2]]
    assert [s.hue for s in specs(small_views=3, jitter_strengths=own[:2])] == [0.1, 0.5, 0.1, 0.5, 0.1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("imagenet resnet50 --method byol", 2342767019),
        ("imagenet resnet50 --small_views 3 --blur 1 0.1 0.5 --solarize 0 0.2", 1314393178),
        ("digits resnet18 --method rotnet", 470388087),
        ("imagenet resnet50 --method clusterfit --cluster_file FILE --small_views 2", 4203081724),
        (
            "--jitter 0.5 --crop_scale 0.3 0.9 cifar10 resnet18 --method simsiam --gray 0.1 "
            "--jitter_strengths 0.4 0.3 0.2 0.1",
            3902604077,
        ),
        ("stl10 resnet18 --method nnclr --small_views 2", 2683458498),
    ],
)
def test_commands_without_settings_per_view_draw_the_views_of_version_1(text, expected):
    """Checksums of all parameters of 200 images, recorded before a view could have settings of its own."""
    args = parse_pretraining(shlex.split(text), METHODS, DATASETS)
    plan = resolve(args, TrainingSet(args.dataset, 50_000, 0, 0, ""), ("small", ""))
    checksum = 0
    for view, spec in enumerate(view_specs(plan.views, METHODS[plan.method].large_views)):
        params = sample(spec, 3, 1, np.arange(200), view, np.tile((90, 120), (200, 1)))
        for field in dataclasses.fields(params):
            column = np.ascontiguousarray(getattr(params, field.name)).astype(np.float32)
            checksum = zlib.crc32(column.tobytes(), checksum)
    assert checksum == expected


def test_blur_taps_are_an_odd_tenth_of_the_view():
    assert [ViewSpec(size).blur_taps for size in (8, 32, 96, 224)] == [3, 3, 9, 23]


def test_expand_repeats_a_spec_count_times():
    assert [s.size for s in expand([ViewSpec(8, count=2), ViewSpec(4)])] == [8, 8, 4]
