"""Parts that all loaders share: batch keys, the order of an epoch, unfinished batches, and a loader that can resume."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.images import Images
from data.sampler import ViewParams, epoch_order
from utils.distributed import rank, world_size

BatchKey = tuple[int, list[int]]  # an epoch, and the images of one batch; epoch -1: evaluation
T = TypeVar("T")


class UnfinishedBatch(NamedTuple):
    """A batch as a loader hands it over, before `finalize_batch`.

    index, labels: (N,), as in `utils.batch.Batch`. views: list of (N, 3, S, S); float32 views are finished, uint8 views
    still have to be normalized. color_params: empty, or for each view the parameters of the colour operations that
    still have to be applied; crop and flip are done.
    """

    index: Tensor  # type: ignore[assignment]  # the name hides tuple.index, which nobody calls on a batch
    views: list[Tensor]
    labels: Tensor
    color_params: list[ViewParams]

    def pin_memory(self) -> "UnfinishedBatch":
        """The batch in memory from which a GPU copies while the host goes on; tensors that are there already stay."""
        return self._replace(
            index=self.index.pin_memory(), labels=self.labels.pin_memory(), views=[v.pin_memory() for v in self.views]
        )

    def to(self, device: torch.device) -> "UnfinishedBatch":
        """The batch with its tensors on `device`; parameters stay on the host."""
        ahead = device.type == "cuda"  # the copy of pinned memory then runs beside the host
        index, labels, *views = (t.to(device, non_blocking=ahead) for t in (self.index, self.labels, *self.views))
        return UnfinishedBatch(index, views, labels, self.color_params)


def without_flip(params: ViewParams) -> ViewParams:
    """The parameters of views that are flipped already."""
    return dataclasses.replace(params, flip=params.flip & False)


class EpochBatchSampler:
    """Batches of this rank in the order that belongs to (seed, epoch), from batch `start` on.

    rows: the images that are distributed, all n by default. Step t of an epoch takes the next batch_size * ranks images
    of the permutation, and rank r the r-th part of them: gathered in rank order they are what one process would have
    taken. The incomplete last step is left out.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rows: NDArray | None = None):
        self.n, self.batch_size, self.seed, self.rows = n, batch_size, seed, rows
        self.epoch = self.start = 0
        # Lightning announces an epoch by `loader.batch_sampler.sampler.set_epoch(epoch)`; this batch sampler has no
        # sampler inside, so it stands for its own.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // (self.batch_size * world_size())

    def __iter__(self) -> Iterator[BatchKey]:
        order = epoch_order(self.n, self.seed, self.epoch)
        order = order if self.rows is None else self.rows[order]
        start, self.start = self.start, 0
        for step in range(start, len(self)):
            first = (step * world_size() + rank()) * self.batch_size
            yield self.epoch, order[first : first + self.batch_size].tolist()


class SequentialBatchSampler:
    """Every image once over all ranks, in order, in batches; the epoch of their keys is -1."""

    def __init__(self, n: int, batch_size: int):
        self.n, self.batch_size = n, batch_size

    def _starts(self) -> range:
        return range(rank() * self.batch_size, self.n, self.batch_size * world_size())

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[BatchKey]:
        for first in self._starts():
            yield -1, list(range(first, min(first + self.batch_size, self.n)))


BatchKeys = EpochBatchSampler | SequentialBatchSampler | list[BatchKey]


class BatchDataset(Dataset):
    """A data set that is read a batch at a time, so that parameters are drawn for all images of a batch at once."""

    def __init__(self, images: Images, seed: int = 0):
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, key: BatchKey) -> UnfinishedBatch:
        epoch, index = key
        rows = torch.tensor(index)
        return UnfinishedBatch(rows, self.views(epoch, index), self.images.labels[rows], [])

    def views(self, epoch: int, index: list[int]) -> list[Tensor]:
        """The views of the images `index` as a worker process makes them; only worker processes call this."""
        raise NotImplementedError


def identity_collate(batch: T) -> T:
    """The batch itself: `BatchDataset` hands out whole batches, so there is nothing to collate."""
    return batch


class ResumableLoader(DataLoader):
    """A loader that counts the batches of the epoch that were handed out.

    Lightning calls `state_dict` of every loader that has one when it writes a checkpoint, and `load_state_dict` when it
    resumes: the next epoch then begins behind the batches that were handed out.
    """

    taken = 0

    def __init__(self, dataset: BatchDataset, keys: BatchKeys, num_workers: int = 0, pin_memory: bool = False):
        self.keys: Iterable[BatchKey] = keys
        super().__init__(
            dataset,
            batch_sampler=keys,  # type: ignore[arg-type]  # torch expects lists of rows; `BatchDataset` takes batch keys
            collate_fn=identity_collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0 and isinstance(keys, EpochBatchSampler),
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[UnfinishedBatch]:  # type: ignore[override]  # a generator: work starts at the first batch
        self.taken = getattr(self.batch_sampler, "start", 0)
        batches = iter(self.batches())
        while (batch := self._next(batches)) is not None:
            self.taken += 1
            yield batch

    def _next(self, batches: Iterator[UnfinishedBatch]) -> UnfinishedBatch | None:
        """The next batch, or None at the end.

        A worker process that is killed while it sends one closes its pipe before torch notices that it is gone.
        """
        try:
            return next(batches, None)
        except (ConnectionError, EOFError) as e:
            raise RuntimeError(f"a DataLoader worker (pid unknown) ended while it sent a batch ({e})") from e

    def batches(self) -> Iterator[UnfinishedBatch]:
        """The batches of the keys, in their order."""
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.batch_sampler, EpochBatchSampler)
        self.batch_sampler.start = state["taken"] % max(1, len(self))
