"""Features of a frozen network, in data set order."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.interfaces import EvalLoader
from utils.distributed import gather, raise_together, rank, sum_over_ranks


class FeatureSet(NamedTuple):
    """x: (N, D) float32 on CPU in data set order. y: (N,) labels, -1 unknown."""

    x: Tensor
    y: Tensor

    def labelled(self) -> "FeatureSet":
        """The rows whose label is known."""
        known = self.y >= 0
        return self if bool(known.all()) else FeatureSet(self.x[known], self.y[known])


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every submodule has its mode of before."""
    training = [m for m in network.modules() if m.training]
    network.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


@torch.no_grad()
def extract(network: nn.Module, loader: EvalLoader, title: str = "") -> FeatureSet:
    """Features of every image of the loader, from the network in evaluation mode; all ranks get all rows.

    A rank may have no images. A title shows a progress bar on the first rank. An error of one rank is an error of all.
    """
    x, y, error = None, torch.zeros(loader.images, dtype=torch.long), None
    try:
        with evaluation_mode(network):
            for batch in tqdm(loader, title, leave=False, disable=None if title and rank() == 0 else True):
                rows = batch.index.cpu()
                features = network(batch.views[0]).float().cpu()
                x = torch.zeros(loader.images, features.shape[1]) if x is None else x
                x[rows], y[rows] = features, batch.labels.cpu()
    except Exception as e:
        error = e
    raise_together(error)
    width = _largest_over_ranks(0 if x is None else x.shape[1], loader.device)
    x = torch.zeros(loader.images, width) if x is None else x
    return FeatureSet(_merge(x, loader.device), _merge(y, loader.device))


def _largest_over_ranks(number: int, device: torch.device) -> int:
    return int(gather(torch.tensor([number], device=device)).max())


def _merge(rows: Tensor, device: torch.device, at_once: int = 2**16) -> Tensor:
    """Sum over ranks, in parts of `at_once` rows through the device: each row is zero on all ranks but one."""
    return torch.cat([sum_over_ranks(part.to(device)).cpu() for part in rows.split(at_once)])
