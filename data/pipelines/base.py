"""What the pipelines share: the order of an epoch, where a resumed run goes on, clean images, the last touches."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.allocator import keep_freed_memory
from data.augment_numba import augment_crops
from data.augment_torch import apply_color_augmentations, standardize_images
from data.datasets import Data
from data.images import Images
from data.sampler import epoch_order, sample
from data.views import ViewSpec, expand
from utils.batch import Batch
from utils.distributed import rank, world_size

BatchKey = tuple[int, list[int]]  # an epoch and the images of one batch


class EpochBatchSampler:
    """Batches of this rank in the order that belongs to (seed, epoch), from batch `start` on.

    rows: the images that are dealt out, all n by default. Step t of an epoch takes the next batch_size * ranks images
    of the permutation, and rank r the r-th part of them: gathered in rank order they are what one process would have
    taken. The incomplete last step is left out.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rows: NDArray | None = None):
        self.n, self.batch_size, self.seed, self.rows = n, batch_size, seed, rows
        self.epoch = self.start = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // (self.batch_size * world_size())

    def __iter__(self) -> Iterator[BatchKey]:
        order = epoch_order(self.n, self.seed, self.epoch)
        order = order if self.rows is None else self.rows[order]
        start, self.start = self.start, 0
        for step in range(start, len(self)):
            at = (step * world_size() + rank()) * self.batch_size
            yield self.epoch, order[at : at + self.batch_size].tolist()


class SequentialBatchSampler:
    """Every image once over all ranks, in order, in batches; the address has epoch -1."""

    def __init__(self, n: int, batch_size: int):
        self.n, self.batch_size = n, batch_size

    def _starts(self) -> range:
        return range(rank() * self.batch_size, self.n, self.batch_size * world_size())

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[BatchKey]:
        for at in self._starts():
            yield -1, list(range(at, min(at + self.batch_size, self.n)))


class ResumableLoader(DataLoader):
    """A loader that knows how many batches of the epoch were taken; Lightning saves and restores that."""

    taken = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator: workers start at the first batch
        self.taken = getattr(self.batch_sampler, "start", 0)
        for batch in self.batches():
            self.taken += 1
            yield batch

    def batches(self) -> Iterator[Batch]:
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.batch_sampler, EpochBatchSampler)
        self.batch_sampler.start = state["taken"] % max(1, len(self))


class BatchDataset(Dataset):
    """What a worker does: a whole batch at a time, so that parameters are drawn for all its images at once."""

    def __init__(self, images: Images, seed: int = 0):
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, address: BatchKey) -> Batch:
        epoch, index = address
        where = torch.tensor(index)
        return Batch(where, self.views(epoch, index), self.images.labels[where])

    def views(self, epoch: int, index: list[int]) -> list[Tensor]:
        """The part of the work that is done here; a pipeline that does it on the device leaves this empty."""
        return []


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.index.to(device), [v.to(device) for v in batch.views], batch.labels.to(device))


def identity_collate(batch: Any) -> Any:
    return batch


class DataModule(LightningDataModule):
    """The interface of every pipeline.

    A pipeline gives `train_dataset` (training) and `eval_dataset` (evaluation), the work of a loader, and `finalize_batch`, the work
    on the device. `eval_dataloader` yields finished clean batches of a split in data set order, without a Trainer.
    """

    def __init__(
        self, data: Data, specs: list[ViewSpec], batch_size: int, seed: int, num_workers: int, accelerator: str
    ):
        super().__init__()
        self.data, self.specs, self.batch_size, self.seed = data, expand(specs), batch_size, seed
        self.num_workers = num_workers
        self.size = self.specs[0].size
        self.on_host = accelerator != "cuda"  # then views are finished before they leave the loader
        keep_freed_memory()

    def train_dataset(self) -> BatchDataset:
        raise NotImplementedError

    def eval_dataset(self, images: Images) -> BatchDataset:
        raise NotImplementedError

    def finalize_batch(self, batch: Batch, epoch: int) -> Batch:
        """The batch with its views normalized on its device; epoch -1 for the evaluation view."""
        return batch._replace(views=[standardize_images(v, self.data.mean, self.data.std) for v in batch.views])

    def apply_color_augmentations(self, batch: Batch, epoch: int) -> Batch:
        """The training batch, whose views are cropped and flipped in uint8, with all that comes after, normalized."""
        index = batch.index.cpu().numpy()
        views = []
        for number, (spec, view) in enumerate(zip(self.specs, batch.views, strict=True)):
            # The crop is done, and nothing else depends on how large an image was.
            params = sample(spec, self.seed, epoch, index, number, np.ones((len(index), 2)))
            if view.is_cuda:
                x = apply_color_augmentations(view.float().div_(255), params, spec.blur_taps)
                views.append(standardize_images(x, self.data.mean, self.data.std))
                continue
            params.flip[:] = False  # that is done too
            out = torch.empty(view.shape)
            crops = list(view.permute(0, 2, 3, 1).contiguous().numpy())
            augment_crops(crops, params, spec.blur_taps, self.data.mean, self.data.std, out.numpy())
            views.append(out)
        return batch._replace(views=views)

    def train_dataloader(self) -> DataLoader:
        self.order = EpochBatchSampler(len(self.data.train), self.batch_size, self.seed)
        return self._loader(self.train_dataset(), self.order, self._device())

    def val_dataloader(self) -> DataLoader:
        assert self.data.val is not None, "no validation set"
        order = SequentialBatchSampler(len(self.data.val), self.batch_size)
        return self._loader(self.eval_dataset(self.data.val), order, self._device())

    def eval_dataloader(self, split: str, device: torch.device) -> "EvalLoader":
        """This rank's share of the clean images of "train" or "val", as finished batches on the device."""
        images = self.data.splits()[split]
        loader = self._loader(self.eval_dataset(images), SequentialBatchSampler(len(images), self.batch_size), device)
        return EvalLoader(self, loader, device)

    def augmented_loader(self, rows: Sequence[int], device: torch.device) -> Iterator[Batch]:
        """Finished batches of the augmented views of the training images `rows`, as epoch 0 draws them."""
        parts = [(0, list(rows[at : at + self.batch_size])) for at in range(0, len(rows), self.batch_size)]
        for batch in self._loader(self.train_dataset(), parts, device):
            yield self.finalize_batch(_moved(batch, device), 0)

    def train_subset_loader(self, rows: NDArray, device: torch.device) -> "TrainSubsetLoader":
        """Augmented batches of the training images `rows`, epoch after epoch."""
        order = EpochBatchSampler(len(rows), min(self.batch_size, max(1, len(rows) // world_size())), self.seed, rows)
        return TrainSubsetLoader(self, self._loader(self.train_dataset(), order, device), order, device)

    def with_views(self, specs: list[ViewSpec]) -> "DataModule":
        """The same images under other views; what was decoded is shared."""
        other = copy.copy(self)
        other.specs = expand(specs)
        return other

    def setup(self, stage: str) -> None:
        """Lightning's first call after the processes have found each other."""
        self.data.check_ranks()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        assert self.trainer is not None
        return self.finalize_batch(batch, self.order.epoch if self.trainer.training else -1)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _loader(self, dataset: BatchDataset, order: Any, device: torch.device) -> DataLoader:
        """A loader of what `dataset` makes of the addresses of `order`, for training or judging on `device`."""
        return ResumableLoader(
            dataset,
            batch_sampler=order,
            collate_fn=identity_collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and isinstance(order, EpochBatchSampler),
            pin_memory=not self.on_host and self.num_workers > 0,
        )


class TrainSubsetLoader:
    """Finished augmented batches on the device; len() counts those of an epoch."""

    def __init__(self, module: DataModule, loader: DataLoader, order: EpochBatchSampler, device: torch.device):
        self.module, self.loader, self.order, self.device = module, loader, order, device
        self.batch_size = order.batch_size

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self.order.set_epoch(epoch)
        for batch in self.loader:
            yield self.module.finalize_batch(_moved(batch, self.device), epoch)


class EvalLoader:
    """Clean batches of one split, finished on the device; len() counts batches, `images` the images of the split."""

    def __init__(self, module: DataModule, loader: DataLoader, device: torch.device):
        self.module, self.loader, self.device = module, loader, device
        self.images = len(loader.dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield self.module.finalize_batch(_moved(batch, self.device), -1)
