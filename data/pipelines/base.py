"""The data module that every pipeline is: loaders of training, evaluation and augmented images, and their last step."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from data.augment_torch import standardize_images
from data.datasets import Data
from data.image_alarms import image_alarms
from data.images import decode_file
from data.pipelines.evaluation_views import EvaluationViews, evaluation_view
from data.pipelines.finalize import finalize_batch
from data.pipelines.kernels import DTYPES
from data.pipelines.loaders import (
    BatchKeys,
    EpochBatchSampler,
    ResumableLoader,
    SequentialBatchSampler,
    UnfinishedBatch,
)
from data.pipelines.prefetch import ThreadPrefetchLoader
from data.report import DataReport, data_report
from data.views import ViewSpec, expand
from utils.batch import Batch
from utils.distributed import world_size


class DataModule(LightningDataModule):
    """The interface of every pipeline; a pipeline says how training batches are made, with `train_loader`.

    `train_dataloader` and `val_dataloader` are Lightning's. The other loaders need no Trainer and yield finished
    batches on the device that they are given. Evaluation images are the same in every pipeline: decoded by
    `num_workers` threads, resized and cropped as torchvision does it (`data.pipelines.evaluation_views`).

    batch_size: images of one process. accelerator: "cpu", "cuda" or "mps". precision: of the training, in which a GPU
    writes the training views: "32", "bf16-mixed" or "16-mixed". The device of a loader decides which executor it uses.
    """

    def __init__(
        self, data: Data, specs: list[ViewSpec], batch_size: int, seed: int, num_workers: int, accelerator: str,
        precision: str = "32",
    ):  # fmt: skip
        super().__init__()
        self.data, self.specs, self.batch_size, self.seed = data, expand(specs), batch_size, seed
        self.num_workers = num_workers
        self.size = self.specs[0].size
        self.dtype = DTYPES[precision] if accelerator == "cuda" else torch.float32  # of training views
        self.order = EpochBatchSampler(len(data.train), batch_size, seed)
        self._evaluation_views: dict[str, EvaluationViews] = {}

    def train_loader(self, keys: BatchKeys, device: torch.device) -> ResumableLoader:
        """A loader of the training images of `keys`, for training on `device`."""
        raise NotImplementedError

    def eval_dataset(self, split: str) -> EvaluationViews:
        """The evaluation views of "train" or "val"; what was decoded is kept for the next loader."""
        if split not in self._evaluation_views:
            images = self.data.splits()[split]
            self._evaluation_views[split] = EvaluationViews(images, self.size)
        return self._evaluation_views[split]

    def eval_loader(self, split: str, device: torch.device) -> ResumableLoader:
        """A loader of this rank's share of the evaluation images of a split, in order, for use on `device`."""
        images = self.eval_dataset(split)
        keys = SequentialBatchSampler(len(images), self.batch_size)
        return ThreadPrefetchLoader(images, keys, self.num_workers, device)

    def finalize_batch(self, batch: UnfinishedBatch, dtype: torch.dtype = torch.float32) -> Batch:
        """The batch with its views finished (colours, normalization) on the device where they are."""
        return finalize_batch(batch, self.specs, self.data.mean, self.data.std, dtype)

    def train_dataloader(self) -> ResumableLoader:
        self.order = EpochBatchSampler(len(self.data.train), self.batch_size, self.seed)
        return self.train_loader(self.order, self._device())

    def val_dataloader(self) -> ResumableLoader:
        assert self.data.val is not None, "the data set has no validation images"
        return self.eval_loader("val", self._device())

    def eval_dataloader(self, split: str, device: torch.device) -> "EvalLoader":
        """Finished batches of this rank's share of the evaluation images of "train" or "val", on the device."""
        return EvalLoader(self, self.eval_loader(split, device), device)

    def evaluation_views(self, split: str, rows: Sequence[int], device: torch.device) -> Batch:
        """The evaluation views of the images `rows` of "train" or "val", as one finished batch on the device."""
        loader = ThreadPrefetchLoader(self.eval_dataset(split), [(-1, list(rows))], self.num_workers, device)
        (batch,) = loader
        return self.finalize_batch(batch.to(device))

    def decode(self, file: Path) -> Tensor:
        """An image file from anywhere as (3, H, W) uint8."""
        return decode_file(str(file))

    def views_of_files(self, files: Sequence[Path], device: torch.device) -> Tensor:
        """The evaluation views (N, 3, size, size) of image files from anywhere, normalized, on the device."""
        views = torch.stack([evaluation_view(self.decode(file), self.size) for file in files])
        return standardize_images(views.to(device), self.data.mean, self.data.std)

    def augmented_loader(self, rows: Sequence[int], device: torch.device) -> Iterator[Batch]:
        """Finished batches of the augmented views of the training images `rows`, as epoch 0 draws them."""
        keys = [(0, list(rows[first : first + self.batch_size])) for first in range(0, len(rows), self.batch_size)]
        for batch in self.train_loader(keys, device):
            yield self.finalize_batch(batch.to(device))

    def train_subset_loader(self, rows: NDArray, device: torch.device) -> "TrainSubsetLoader":
        """Augmented batches of the training images `rows`, epoch after epoch."""
        order = EpochBatchSampler(len(rows), min(self.batch_size, max(1, len(rows) // world_size())), self.seed, rows)
        return TrainSubsetLoader(self, self.train_loader(order, device), order, device)

    def with_views(self, specs: list[ViewSpec]) -> "DataModule":
        """A data module of the same images with other training views; decoded images are shared."""
        other = copy.copy(self)
        other.specs = expand(specs)
        return other

    def setup(self, stage: str) -> None:
        """Compare the images of all processes: Lightning calls this first when the processes have found each other."""
        self.data.check_ranks()

    def image_alarms(self) -> dict[str, str]:
        """Name -> sentence of what is wrong with the images, from a look of some seconds at most."""
        return image_alarms(self.data.train, self.data.val)

    def data_report(self) -> DataReport:
        """Counts, sizes and copies of the images, from a look of some seconds."""
        return data_report(self.data)

    def transfer_batch_to_device(
        self, batch: UnfinishedBatch, device: torch.device, dataloader_idx: int
    ) -> UnfinishedBatch:
        return batch.to(device)

    def on_after_batch_transfer(self, batch: UnfinishedBatch, dataloader_idx: int) -> Batch:
        return self.finalize_batch(batch, self.dtype)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")


class TrainSubsetLoader:
    """Finished augmented batches of some training images on the device; len() counts the batches of an epoch."""

    def __init__(self, module: DataModule, loader: ResumableLoader, order: EpochBatchSampler, device: torch.device):
        self.module, self.loader, self.order, self.device = module, loader, order, device
        self.batch_size = order.batch_size

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        self.order.set_epoch(epoch)
        for batch in self.loader:
            yield self.module.finalize_batch(batch.to(self.device))


class EvalLoader:
    """Finished batches of evaluation views of one split; len() counts batches, `images` the images of the split."""

    def __init__(self, module: DataModule, loader: ResumableLoader, device: torch.device):
        self.module, self.loader, self.device = module, loader, device
        self.images = len(loader.dataset)  # type: ignore[arg-type]  # torch's Dataset does not promise a length

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield self.module.finalize_batch(batch.to(self.device))
