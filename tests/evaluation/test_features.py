"""Tests of feature extraction: order, modes, numbers of processes."""

import pytest
import torch
from torch import nn

from evaluation.features import evaluation_mode, extract
from tests.helpers.evaluation import CPU, Position, digits_module
from utils.batch import Batch


def test_extract_keeps_the_order_and_the_network():
    network = nn.Sequential(nn.BatchNorm2d(3), Position())
    network[0].eval()
    module = digits_module()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    features = extract(network, module.eval_dataloader("train", CPU))
    assert torch.equal(features.y, module.data.train.labels)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert (network.training, network[0].training, network[1].training) == (True, False, True)
    first = next(iter(module.eval_dataloader("train", CPU)))
    torch.testing.assert_close(features.x[:100], network.eval()(first.views[0]))


def test_evaluation_mode_is_put_back_after_an_error():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Identity())
    modes = []

    def fail():
        with evaluation_mode(network):
            modes.append(network[0].training)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (modes, network[0].training) == ([False], True)


def extract_digits(rank, world):
    features = extract(Position(), digits_module().eval_dataloader("val", CPU))
    return features.x, features.y


def test_extract_does_not_depend_on_the_number_of_processes(ranks):
    x, y = extract_digits(0, 1)
    for other_x, other_y in ranks(2).run(extract_digits):
        torch.testing.assert_close(other_x, x)
        assert torch.equal(other_y, y)


class TwoImages:
    """Two images, the first on rank 0 and the second on rank 1; the other ranks have none."""

    images, device = 2, CPU

    def __init__(self, rank):
        self.rank = rank

    def __len__(self):
        return int(self.rank < self.images)

    def __iter__(self):
        if self.rank < self.images:
            view = torch.full((1, 3, 4, 4), 5.0 + self.rank)
            yield Batch(torch.tensor([self.rank]), [view], torch.tensor([self.rank]))


def extract_two(rank, world):
    features = extract(Position(), TwoImages(rank))
    return features.x, features.y


def test_extract_works_where_a_rank_has_no_image(ranks):
    for x, y in ranks(3).run(extract_two):
        assert x.tolist() == [[5, 5], [6, 6]]
        assert y.tolist() == [0, 1]


def test_extract_on_one_process_takes_no_way_over_the_device():
    class Elsewhere(TwoImages):
        device = torch.device("meta")  # what passes through it is lost

    features = extract(Position(), Elsewhere(0))
    assert features.x.tolist() == [[5, 5], [0, 0]]
    assert features.y.tolist() == [0, 0]
