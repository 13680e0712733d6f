"""Features of a frozen network, in data set order."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.interfaces import EvalLoader
from evaluation.shared_features import share_rows
from utils.distributed import barrier, raise_together, rank, sum_over_ranks, world_size


class FeatureSet(NamedTuple):
    """x: (N, D) float32 on CPU in data set order. y: (N,) labels, -1 unknown; of several labels (N, C) bool,
    whether an image has a class.
    """

    x: Tensor
    y: Tensor

    def labelled(self) -> "FeatureSet":
        """The rows whose label is known, or that have a class."""
        known = self.y >= 0 if self.y.ndim == 1 else self.y.any(dim=1)
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
def extract(network: nn.Module, loader: EvalLoader, title: str = "", folder: Path | None = None) -> FeatureSet:
    """Features of every image of the loader, from the network in evaluation mode; all ranks get all rows.

    Several ranks share one copy on each machine: a memory map of a file in `folder`, by default the system's temporary
    directory, that has no name any more and goes with the last process. A rank may have no images. A title shows a
    progress bar on the first rank. An error of one rank is an error of all.
    """
    x, y, error = None, torch.zeros(loader.images, dtype=torch.long), None
    own: list[tuple[Tensor, Tensor]] = []  # the rows of this rank of several
    try:
        with evaluation_mode(network):
            for batch in tqdm(loader, title, leave=False, disable=None if title and rank() == 0 else True):
                rows, features = batch.index.cpu(), network(batch.views[0]).float().cpu()
                y[rows] = batch.labels.cpu()
                if world_size() > 1:
                    own.append((rows, features))
                    continue
                x = torch.zeros(loader.images, features.shape[1]) if x is None else x
                x[rows] = features
    except Exception as e:
        error = e
    barrier()  # a slow rank may be minutes behind, which a collective would not wait for
    raise_together(error)
    if world_size() == 1:
        return FeatureSet(torch.zeros(loader.images, 0) if x is None else x, y)
    return FeatureSet(share_rows(own, loader.images, loader.device, folder), sum_over_ranks(y.to(loader.device)).cpu())
