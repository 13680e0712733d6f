"""The sampler: addressed, uniform, and torchvision's distributions."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from data.sampler import epoch_order, sample, uniform
from data.views import RATIO, SIGMA, ViewSpec

N = 20_000
SPEC = ViewSpec(32, blur=0.5, solarize=0.2)


def draw(spec=SPEC, seed=0, epoch=0, index=None, view=0, size=(40, 60)):
    index = np.arange(N) if index is None else np.asarray(index)
    return sample(spec, seed, epoch, index, view, np.tile(size, (len(index), 1)))


def test_uniform_is_uniform_and_independent_of_neighbouring_addresses():
    u = uniform(3, np.arange(N)[:, None], np.arange(4))
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert abs(counts / u.size - 1 / 20).max() < 4 * (0.05 * 0.95 / u.size) ** 0.5 + 1e-3
    assert abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03


def test_the_same_number_on_every_machine_for_ever():
    """Frozen: a change here makes every recorded run impossible to repeat."""
    assert float(uniform(0, 1, 2, 3)) == 0.5411209698165707


@pytest.mark.parametrize("part", ["seed", "epoch", "index", "view"])
def test_every_part_of_the_address_matters(part):
    changed = {"index": np.arange(N) + 1} if part == "index" else {part: 1}
    a, b = draw(), draw(**changed)
    assert (a.box != b.box).any(axis=1).mean() > 0.95
    assert (a.order != b.order).any(axis=1).mean() > 0.9


def test_parameters_do_not_depend_on_the_batch_they_come_in():
    whole, part = draw(), draw(index=[7, 3, 19_999])
    for name in ("box", "flip", "jitter", "factors", "order", "gray", "sigma", "solarize"):
        assert np.array_equal(getattr(whole, name)[[7, 3, 19_999]], getattr(part, name)), name


@pytest.mark.parametrize("size", [(40, 60), (32, 32), (9, 100)])
def test_boxes_are_distributed_as_torchvisions(size):
    box = draw(size=size).box
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], list(RATIO)) for _ in range(4000)])
    for ours, reference in zip(box.T, theirs.T, strict=True):  # top, left, height, width
        error = 4 * (ours.std() / len(ours) ** 0.5 + reference.std() / len(reference) ** 0.5) + 1e-9
        assert abs(ours.mean() - reference.mean()) < error
        assert ours.std() == pytest.approx(reference.std(), rel=0.06, abs=1e-9)
    inside = (box[:, :2] >= 0).all() and (box[:, 0] + box[:, 2] <= size[0]).all()
    assert inside
    assert (box[:, 1] + box[:, 3] <= size[1]).all()
    assert (box[:, 2:] >= 1).all()


def test_colour_parameters():
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


def test_strengths_above_one_do_not_turn_colours_over():
    assert draw(ViewSpec(32, brightness=2.0)).factors[:, 0].min() >= 0


def test_orders_are_permutations_that_change_with_epoch_and_seed():
    orders = [epoch_order(1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert (orders[0] != orders[1]).mean() > 0.99
    assert (orders[0] != orders[2]).mean() > 0.99
    assert np.array_equal(orders[0], epoch_order(1000, 0, 0))
