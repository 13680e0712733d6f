"""--pipeline device: every image decoded once, to uint8, and a whole batch augmented at once on the training device."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from data.augment import at_once, clean_axes, draw_views, normalize, resample, short_side
from data.datasets import Data
from data.images import ArrayImages, Images
from data.module import ByAddress, DataModule
from data.sampler import sample
from utils.batch import Batch

SHARE = 0.4  # of the memory that decoded images may take


def stored_side(size: int) -> int:
    """Side of the square that a larger image is squeezed into; its own proportions are kept beside it."""
    return max(short_side(size), size)


def bytes_needed(data: Data, size: int) -> int:
    """Bytes of all images as the stores keep them, at most; read from no file."""
    side = stored_side(size)
    return sum(len(images) * 3 * side * side for images in data.splits().values())


class Store:
    """Decoded images: pixels (N, 3, H, W) uint8; sizes (N, 2), the heights and widths they had.

    Images of one size that is not above `stored_side` stay as they are; all others are squeezed into that square,
    without losing where their pixels were: `ratio` (N, 2) leads from original pixels to stored ones.
    """

    def __init__(self, images: Images, size: int):
        side = stored_side(size)
        self.sizes = images.sizes()
        alike = (self.sizes == self.sizes[0]).all() and self.sizes.max() <= side
        if alike and isinstance(images, ArrayImages):
            self.pixels = images.pixels
        else:
            self.pixels = self._decode(images, tuple(self.sizes[0]) if alike else (side, side))
        self.ratio = np.array(self.pixels.shape[2:]) / self.sizes

    @staticmethod
    def _decode(images: Images, shape: tuple[int, int]) -> Tensor:
        pixels = torch.empty(len(images), 3, *shape, dtype=torch.uint8)

        def put(i: int) -> None:
            image = images.decode(i)
            pixels[i] = image if image.shape[1:] == shape else TF.resize(image, list(shape), antialias=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            done = pool.map(put, range(len(images)))
            for _ in tqdm(done, "decoding", len(images), disable=True if len(images) < 5000 else None):
                pass
        return pixels

    def to(self, device: torch.device) -> None:
        """Move the pixels to the device, once, when they leave it room."""
        if device.type == "cuda" and not self.pixels.is_cuda:
            free, _ = torch.cuda.mem_get_info(device)
            if self.pixels.numel() < SHARE * free:
                self.pixels = self.pixels.to(device)

    def take(self, index: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 on the index's device."""
        return self.pixels[index.to(self.pixels.device)].to(index.device, non_blocking=True)


class DeviceModule(DataModule):
    """The loader only deals out indices; the views are made after the transfer, in chunks that fit the CPU's cache."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_workers = 0
        self.stores = {split: Store(images, self.size) for split, images in self.data.splits().items()}

    def view_set(self) -> ByAddress:
        return ByAddress(self.data.train)

    def clean_set(self, images: Images) -> ByAddress:
        return ByAddress(images)

    def finish(self, batch: Batch, split: str, epoch: int) -> Batch:
        store, device = self.stores[split], batch.index.device
        store.to(device)
        index = batch.index.cpu().numpy()
        images = store.take(batch.index)
        views = [self._clean(store, images, index)] if epoch < 0 else self._views(store, images, index, epoch)
        return batch._replace(views=[normalize(v, self.data.mean, self.data.std) for v in views])

    def _views(self, store: Store, images: Tensor, index: np.ndarray, epoch: int) -> list[Tensor]:
        views = []
        for number, spec in enumerate(self.specs):
            step = at_once(spec.size) if images.device.type == "cpu" else len(index)
            params = sample(spec, self.seed, epoch, index, number, store.sizes[index])
            parts = [
                draw_views(
                    images[at : at + step],
                    params.rows(slice(at, at + step)),
                    spec,
                    store.ratio[index[at : at + step]],
                )
                for at in range(0, len(index), step)
            ]
            views.append(torch.cat(parts))
        return views

    def _clean(self, store: Store, images: Tensor, index: np.ndarray) -> Tensor:
        y, x = clean_axes(store.sizes[index], self.size)
        return resample(images, y.stretched(store.ratio[index, 0]), x.stretched(store.ratio[index, 1]), self.size)
