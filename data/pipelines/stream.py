"""--pipeline stream: images decoded, cropped and resized by threads, once per step for all views, a few batches ahead.

For folders that do not fit in memory. On a GPU the threads leave the views in uint8 and the batched executor does the
rest; on CPU they augment_crops them with the compiled loops.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.augment_numba import augment_crops, to_chw
from data.datasets import Data
from data.images import Images
from data.pipelines.base import DataModule
from data.pipelines.prefetch import ThreadedDataset, ThreadPrefetchLoader
from data.pipelines.torchvision_workers import eval_view
from data.sampler import sample
from data.views import ViewSpec
from utils.batch import Batch


class StreamedViews(ThreadedDataset):
    """Cropped, resized and flipped views in uint8, or with `finished` the whole views, normalized."""

    def __init__(self, data: Data, specs: list[ViewSpec], seed: int, finished: bool, pinned: bool):
        super().__init__(data.train, seed, pinned)
        self.data, self.specs, self.finished = data, specs, finished

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        return [(spec.size, torch.float32 if self.finished else torch.uint8) for spec in self.specs]

    def fill(self, views: list[Tensor], epoch: int, index: NDArray) -> None:
        images = [self.images.decode(i) for i in index]
        sizes = np.array([image.shape[1:] for image in images])
        for number, (spec, out) in enumerate(zip(self.specs, views, strict=True)):
            params = sample(spec, self.seed, epoch, index, number, sizes)
            crops = [cropped(*pair, spec.size) for pair in zip(images, params.box.tolist(), strict=True)]
            if self.finished:
                augment_crops(crops, params, spec.blur_taps, self.data.mean, self.data.std, out.numpy())
            else:
                to_chw(crops, params.flip, out.numpy())


def cropped(image: Tensor, box: list[int], size: int) -> NDArray:
    """(3, H, W) uint8 -> (size, size, 3) uint8: the box, resized as torchvision's resized_crop does.

    Channels last, the layout in which images leave the decoders and in which torch resizes fastest.
    """
    top, left, height, width = box
    x = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    if (height, width) != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x[0].permute(1, 2, 0).contiguous().numpy()


class StreamedClean(ThreadedDataset):
    """The evaluation view in uint8."""

    def __init__(self, images: Images, size: int, pinned: bool):
        super().__init__(images, pinned=pinned)
        self.size = size

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        return [(self.size, torch.uint8)]

    def fill(self, views: list[Tensor], epoch: int, index: NDArray) -> None:
        for i, row in enumerate(index):
            views[0][i] = eval_view(self.images.decode(row), self.size)


class StreamDataModule(DataModule):
    """num_workers counts threads."""

    def train_dataset(self) -> ThreadedDataset:
        return StreamedViews(self.data, self.specs, self.seed, finished=self.on_host, pinned=not self.on_host)

    def eval_dataset(self, images: Images) -> ThreadedDataset:
        return StreamedClean(images, self.size, pinned=not self.on_host)

    def finalize_batch(self, batch: Batch, epoch: int) -> Batch:
        if epoch < 0:
            return super().finalize_batch(batch, epoch)
        return batch if self.on_host else self.apply_color_augmentations(batch, epoch)

    def _loader(self, work: ThreadedDataset, order: Any, device: torch.device) -> ThreadPrefetchLoader:  # type: ignore[override]
        return ThreadPrefetchLoader(work, order, self.num_workers)
