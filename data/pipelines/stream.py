"""--pipeline stream: images decoded, cropped and resized by threads, once per step for all views, a few batches ahead.

For folders that do not fit in memory. For a GPU the threads leave the views in uint8 and its executor does the rest; on
CPU the threads finish them with the compiled loops.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.augment_numba import augment_crops, to_chw
from data.datasets import Data
from data.pipelines.base import DataModule
from data.pipelines.loaders import BatchKeys, without_flip
from data.pipelines.prefetch import ThreadedDataset, ThreadPrefetchLoader
from data.sampler import ViewParams, sample
from data.views import ViewSpec


class StreamedViews(ThreadedDataset):
    """Cropped, resized and flipped views in uint8, or with `finished` whole views in float32, normalized."""

    def __init__(self, data: Data, specs: list[ViewSpec], seed: int, finished: bool):
        super().__init__(data.train, seed)
        self.data, self.specs, self.finished = data, specs, finished

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        return [(spec.size, torch.float32 if self.finished else torch.uint8) for spec in self.specs]

    def render_into(self, views: list[Tensor], epoch: int, index: NDArray) -> list[ViewParams]:
        images = [self.images.decode(i) for i in index]
        sizes = np.array([image.shape[1:] for image in images])
        left = []
        for number, (spec, out) in enumerate(zip(self.specs, views, strict=True)):
            params = sample(spec, self.seed, epoch, index, number, sizes)
            crops = [resized_crop(*pair, spec.size) for pair in zip(images, params.box.tolist(), strict=True)]
            if self.finished:
                augment_crops(crops, params, spec.blur_taps, self.data.mean, self.data.std, out.numpy())
            else:
                to_chw(crops, params.flip, out.numpy())
                left.append(without_flip(params))
        return left


def resized_crop(image: Tensor, box: list[int], size: int) -> NDArray:
    """(3, H, W) uint8 -> (size, size, 3) uint8: the box, resized as torchvision's resized_crop does.

    Channels last, the layout in which images leave the decoders and in which torch resizes fastest.
    """
    top, left, height, width = box
    x = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    if (height, width) != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x[0].permute(1, 2, 0).contiguous().numpy()


class StreamDataModule(DataModule):
    """num_workers counts threads."""

    def train_loader(self, keys: BatchKeys, device: torch.device) -> ThreadPrefetchLoader:
        images = StreamedViews(self.data, self.specs, self.seed, finished=device.type != "cuda")
        return ThreadPrefetchLoader(images, keys, self.num_workers, device)
