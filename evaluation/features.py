"""A frozen backbone and a loader -> features in data set order."""

from collections.abc import Sized
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.distributed import rank, sum_over_ranks


class Loader(Sized, Protocol):
    """Yields Batches that together hold each of `images` images once over all ranks, on `device`."""

    images: int
    device: torch.device

    def __iter__(self): ...


class FeatureSet(NamedTuple):
    """x: (N, D) float32 on CPU in data set order. y: (N,) labels, -1 unknown."""

    x: Tensor
    y: Tensor

    def labelled(self) -> "FeatureSet":
        """Only the rows whose label is known."""
        known = self.y >= 0
        return self if bool(known.all()) else FeatureSet(self.x[known], self.y[known])


@torch.no_grad()
def extract(network: nn.Module, loader: Loader, title: str = "") -> FeatureSet:
    """Features of every image of the loader, from the network in evaluation mode; all ranks get all rows.

    The network's mode is put back afterwards. A title shows a progress bar on the first rank.
    """
    training = [m for m in network.modules() if m.training]
    network.eval()
    x, y = None, torch.zeros(loader.images, dtype=torch.long)
    for batch in tqdm(loader, title, leave=False, disable=None if title and rank() == 0 else True):
        f = network(batch.views[0]).float().cpu()
        x = torch.zeros(loader.images, f.shape[1]) if x is None else x
        at = batch.index.cpu()
        x[at], y[at] = f, batch.labels.cpu()
    for m in training:
        m.training = True
    assert x is not None, "a rank without images"
    return FeatureSet(_merge(x, loader.device), _merge(y, loader.device))


def _merge(rows: Tensor, device: torch.device, at_once: int = 2**16) -> Tensor:
    """Sum over ranks, in pieces through the device: each row is zero on all ranks but one."""
    return torch.cat([sum_over_ranks(part.to(device)).cpu() for part in rows.split(at_once)])
