"""The sampler: addressed, uniform, with torchvision's distributions."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from data.sampler import ViewParams, epoch_order, sample
from data.views import RATIO, SIGMA, ViewSpec

N = 20_000
SPEC = ViewSpec(32, blur=0.5, solarize=0.2)


def draw(spec=SPEC, seed=0, epoch=0, index=None, view=0, size=(40, 60)):
    index = np.arange(N) if index is None else np.asarray(index)
    return sample(spec, seed, epoch, index, view, np.tile(size, (len(index), 1)))


@pytest.mark.parametrize("part", ["seed", "epoch", "index", "view"])
def test_sample_depends_on_every_part_of_its_address(part):
    changed = {"index": np.arange(N) + 1} if part == "index" else {part: 1}
    a, b = draw(), draw(**changed)
    assert (a.box != b.box).any(axis=1).mean() > 0.95
    assert (a.order != b.order).any(axis=1).mean() > 0.9


def test_sample_does_not_depend_on_the_other_images_of_a_batch():
    whole, part = draw(), draw(index=[7, 3, 19_999])
    for name in ("box", "flip", "jitter", "factors", "order", "gray", "sigma", "solarize"):
        assert np.array_equal(getattr(whole, name)[[7, 3, 19_999]], getattr(part, name)), name


@pytest.mark.parametrize("size", [(40, 60), (32, 32), (9, 100)])
def test_sample_distributes_boxes_as_torchvision(size):
    box = draw(size=size).box
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    expected = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], list(RATIO)) for _ in range(4000)])
    for found, reference in zip(box.T, expected.T, strict=True):  # top, left, height, width
        error = 4 * (found.std() / len(found) ** 0.5 + reference.std() / len(reference) ** 0.5) + 1e-9
        assert abs(found.mean() - reference.mean()) < error
        assert found.std() == pytest.approx(reference.std(), rel=0.06, abs=1e-9)
    inside = (box[:, :2] >= 0).all() and (box[:, 0] + box[:, 2] <= size[0]).all()
    assert inside
    assert (box[:, 1] + box[:, 3] <= size[1]).all()
    assert (box[:, 2:] >= 1).all()


def test_sample_draws_colours_within_their_ranges():
    p = draw()
    for column, strength in enumerate((0.4, 0.4, 0.4)):
        assert p.factors[:, column].min() >= 1 - strength
        assert p.factors[:, column].max() <= 1 + strength
        assert p.factors[:, column].mean() == pytest.approx(1, abs=0.01)
    assert abs(p.factors[:, 3]).max() <= 0.1
    assert p.factors[:, 3].mean() == pytest.approx(0, abs=0.002)
    orders = Counter(map(tuple, p.order))
    assert len(orders) == 24
    assert max(orders.values()) / min(orders.values()) < 1.35
    for mask, probability in ((p.flip, 0.5), (p.jitter, 0.8), (p.gray, 0.2), (p.sigma > 0, 0.5), (p.solarize, 0.2)):
        assert mask.mean() == pytest.approx(probability, abs=0.015)
    sigma = p.sigma[p.sigma > 0]
    assert SIGMA[0] <= sigma.min()
    assert sigma.max() <= SIGMA[1]
    assert sigma.mean() == pytest.approx(sum(SIGMA) / 2, abs=0.02)


def test_sample_keeps_factors_positive_for_strengths_above_one():
    assert draw(ViewSpec(32, brightness=2.0)).factors[:, 0].min() >= 0


def test_epoch_order_is_a_permutation_that_changes_with_epoch_and_seed():
    orders = [epoch_order(1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert (orders[0] != orders[1]).mean() > 0.99
    assert (orders[0] != orders[2]).mean() > 0.99
    assert np.array_equal(orders[0], epoch_order(1000, 0, 0))


def test_concatenate_of_parts_is_the_whole():
    whole, parts = draw(index=range(10)), [draw(index=range(4)), draw(index=range(4, 10))]
    for name, values in vars(ViewParams.concatenate(parts)).items():
        assert np.array_equal(values, getattr(whole, name)), name
