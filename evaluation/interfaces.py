"""Interfaces of the data that evaluations read; the data modules of every pipeline implement them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.batch import Batch


class Images(Protocol):
    """Images of one split: labels (N,) int64, -1 unknown; names of the classes, empty where there are none."""

    labels: Tensor
    classes: list[str]

    def __len__(self) -> int: ...

    @property
    def names(self) -> Sequence[str]:
        """The name of each image: a path below the root of the split, or a row number where there are no files."""
        ...

    def decode(self, i: int) -> Tensor:
        """(3, H, W) uint8."""
        ...

    def fingerprint(self) -> str: ...


class Data(Protocol):
    """A data set: its splits "train" and perhaps "val", and its number of classes, 0 without labels.

    mean, std: per channel, of the normalization of its views.
    """

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...

    @property
    def train(self) -> Images: ...

    @property
    def val(self) -> Images | None: ...

    @property
    def classes(self) -> int: ...

    def splits(self) -> Mapping[str, Images]: ...

    def label_sets(self, split: str) -> Tensor | None:
        """(N, C) bool, the classes of each image, where images have several labels; None where they have one."""
        ...


class EvalLoader(Protocol):
    """Batches that together hold each of `images` images once over all ranks, on `device`; len() counts batches."""

    images: int
    device: torch.device

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class TrainSubsetLoader(Protocol):
    """Epochs of augmented batches of `batch_size` images per process; len() counts the batches of an epoch."""

    batch_size: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[Batch]: ...


class AugmentedData(Protocol):
    """A data module whose training images are drawn as augmented views, epoch after epoch."""

    def train_subset_loader(self, rows: NDArray, device: torch.device) -> TrainSubsetLoader: ...


class EvaluationData(Protocol):
    """A data module as evaluations see it. size: side of an image in pixels."""

    size: int

    @property
    def data(self) -> Data: ...

    def eval_dataloader(self, split: str, device: torch.device) -> EvalLoader:
        """Evaluation views of a split in data set order."""
        ...

    def evaluation_views(self, split: str, rows: Sequence[int], device: torch.device) -> Batch:
        """Evaluation views of some images of a split, as one batch; one rank may call alone."""
        ...

    def decode(self, file: Path) -> Tensor:
        """An image file from anywhere as (3, H, W) uint8."""
        ...

    def views_of_files(self, files: Sequence[Path], device: torch.device) -> Tensor:
        """Evaluation views (N, 3, size, size) of image files from anywhere."""
        ...

    def augmented_loader(self, rows: Sequence[int], device: torch.device) -> Iterator[Batch]:
        """Augmented views of some training images, once."""
        ...
