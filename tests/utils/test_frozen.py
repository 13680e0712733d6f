"""A frozen network keeps its mode, its weights and its statistics."""

import torch
from torch import nn

from tests.helpers.networks import Flat
from utils.frozen import FrozenNetwork


def test_frozen_network_stays_in_evaluation_mode_inside_of_a_training_module():
    outside = nn.Sequential(FrozenNetwork(Flat(12), 6), nn.Linear(6, 2)).train()
    assert [m.training for m in outside.children()] == [False, True]
    assert not any(m.training for m in outside[0].modules())


def test_frozen_network_has_no_gradients_and_keeps_its_statistics():
    frozen = FrozenNetwork(Flat(12), 6).train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    assert not frozen(x).requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert torch.allclose(frozen(x)[:1], frozen(x[:1])), "an image's features do not depend on its batch"
