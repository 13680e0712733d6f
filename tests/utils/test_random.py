"""Random numbers by address: uniform, independent, frozen, and the same as arrays and as tensors."""

import numpy as np
import pytest
import torch

from utils.random import uniform, uniform_array

N = 20_000


def test_uniform_is_uniform_and_independent_of_neighbouring_addresses():
    u = uniform_array(3, np.arange(N)[:, None], np.arange(4))
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert abs(counts / u.size - 1 / 20).max() < 4 * (0.05 * 0.95 / u.size) ** 0.5 + 1e-3
    assert abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03


def test_uniform_is_frozen():
    """A change of this number makes every recorded run impossible to repeat."""
    assert float(uniform_array(0, 1, 2, 3)) == 0.5411209698165707


@pytest.mark.parametrize("seed", [0, 3, 2**32 - 1])
def test_uniform_has_the_bits_of_uniform_array(seed):
    index, place = np.arange(7)[:, None], np.arange(5)
    tensors = uniform(seed, torch.tensor(9), torch.from_numpy(index), torch.from_numpy(place))
    assert np.array_equal(tensors.numpy(), uniform_array(seed, 9, index, place))
    assert float(uniform(seed, 1, 2)) == float(uniform_array(seed, 1, 2))
