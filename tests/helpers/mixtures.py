"""Random rows, and rows in clusters that are known."""

import torch


def draw(n, d, seed=0):
    """(n, d) standard normal numbers."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def mixture(n, d, k, apart, seed=0):
    """n rows around k random centres, the classes in turns. apart: in standard deviations of a row about its centre."""
    return apart * draw(k, d, seed + 1)[torch.arange(n) % k] + draw(n, d, seed)
