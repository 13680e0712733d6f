"""--pipeline stream: images decoded, cropped and resized by threads, once per step for all views, a few batches ahead.

For folders that do not fit in memory. On a GPU the threads leave the views in uint8 and the batched executor does the
rest; on CPU they finish them, an image at a time.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.ahead import AheadLoader, Pieces
from data.augment import normalize
from data.datasets import Data
from data.images import Images
from data.module import DataModule
from data.sampler import sample
from data.single import color_view, crop_view
from data.views import ViewSpec
from data.workers import clean_view
from utils.batch import Batch


class StreamedViews(Pieces):
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
            for i, image in enumerate(images):
                out[i] = crop_view(image, params, i, spec.size)
                if self.finished:
                    color_view(out[i].div_(255), params, i, spec)
                    normalize(out[i : i + 1], self.data.mean, self.data.std)


class StreamedClean(Pieces):
    """The evaluation view in uint8."""

    def __init__(self, images: Images, size: int, pinned: bool):
        super().__init__(images, pinned=pinned)
        self.size = size

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        return [(self.size, torch.uint8)]

    def fill(self, views: list[Tensor], epoch: int, index: NDArray) -> None:
        for i, row in enumerate(index):
            views[0][i] = clean_view(self.images.decode(row), self.size)


class StreamModule(DataModule):
    """num_workers counts threads."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.on_host = not torch.cuda.is_available()

    def view_set(self) -> Pieces:
        return StreamedViews(self.data, self.specs, self.seed, finished=self.on_host, pinned=not self.on_host)

    def clean_set(self, images: Images) -> Pieces:
        return StreamedClean(images, self.size, pinned=not self.on_host)

    def finish(self, batch: Batch, split: str, epoch: int) -> Batch:
        if epoch < 0:
            return super().finish(batch, split, epoch)
        return batch if self.on_host else super().finish(self.colored(batch, epoch), split, epoch)

    def _loader(self, dataset, order, device=None) -> AheadLoader:
        return AheadLoader(dataset, order, self.num_workers)
