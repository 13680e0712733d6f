"""--pipeline device: every image decoded once, to uint8, and whole batches made of what is in memory.

On a GPU, and in its memory where there is room, the batched executor makes the next batch on a stream of its own while
the current one trains; on CPU threads make it with the compiled loops.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from data.augment_numba import augment_images
from data.augment_torch import (
    Axis,
    apply_color_augmentations,
    crop_axes,
    eval_axes,
    resample,
    short_side,
    standardize_images,
)
from data.datasets import Data
from data.decode_cache import DecodeCache
from data.images import ArrayImages, Images
from data.pipelines.base import BatchKey, DataModule, ResumableLoader, identity_collate
from data.pipelines.prefetch import ThreadedDataset, ThreadPrefetchLoader
from data.sampler import ViewParams, sample
from data.views import ViewSpec
from utils.batch import Batch
from utils.errors import UserError

SHARE = 0.4  # of the memory that decoded images may take


def stored_side(size: int) -> int:
    """Side of the square that a larger image is squeezed into; its own proportions are kept beside it.

    Twice the view while that is little memory, so that crops of a quarter of the image keep their detail; 256 for 224.
    """
    return max(short_side(size), min(2 * size, 256))


def bytes_needed(data: Data, size: int) -> int:
    """Bytes of all images as the stores keep them, at most; read from no file."""
    side = stored_side(size)
    return sum(len(images) * 3 * side * side for images in data.splits().values())


class DecodedImages:
    """Decoded images: pixels (N, 3, H, W) uint8; sizes (N, 2), the heights and widths they had.

    Images of one size that is not above `stored_side` stay as they are; all others are squeezed into that square,
    without losing where their pixels were: `ratio` (N, 2) leads from original pixels to stored ones. With a cache they
    are in a file there, of which the system keeps in memory what it has room for.
    """

    def __init__(self, images: Images, size: int, cache: Path | None = None):
        if isinstance(images, ArrayImages) and cache:
            raise UserError(f"--cache {cache} does nothing for images that are not read from files; leave it out")
        kept = DecodeCache(cache, images) if cache else None
        self.images = images
        self.sizes = kept.sizes() if kept else images.sizes()
        side = stored_side(size)
        alike = (self.sizes == self.sizes[0]).all() and self.sizes.max() <= side
        height, width = self.sizes[0].tolist() if alike else (side, side)
        if alike and isinstance(images, ArrayImages):
            self.pixels = images.pixels
        elif kept:
            self.pixels = kept.pixels((height, width), self._decode)
        else:
            self.pixels = torch.empty(len(images), 3, height, width, dtype=torch.uint8)
            self._decode(self.pixels, range(len(images)))
        self.ratio = np.array(self.pixels.shape[2:]) / self.sizes

    def _decode(self, pixels: Tensor, rows: range) -> None:
        shape = pixels.shape[2:]

        def put(i: int) -> None:
            image = self.images.decode(i)
            pixels[i] = image if image.shape[1:] == shape else TF.resize(image, list(shape), antialias=True)

        n = len(self.images)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            done = pool.map(put, rows)
            for _ in tqdm(done, "decoding", n, initial=rows.start, disable=True if n < 5000 else None):
                pass

    def to(self, device: torch.device) -> None:
        """Move the pixels to the device, once, when they leave it room."""
        if device.type == "cuda" and not self.pixels.is_cuda:
            free, _ = torch.cuda.mem_get_info(device)
            if self.pixels.numel() < SHARE * free:
                self.pixels = self.pixels.to(device)

    def take(self, index: Tensor, device: torch.device) -> Tensor:
        """(N, 3, H, W) uint8 on the device."""
        return self.pixels[index.to(self.pixels.device)].to(device)


class DecodedViews(ThreadedDataset):
    """Whole views of stored images; without specs, the evaluation view of `size` pixels."""

    def __init__(self, store: DecodedImages, data: Data, specs: list[ViewSpec], size: int, seed: int):
        super().__init__(store.images, seed)
        self.store, self.data, self.specs, self.size = store, data, specs, size

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        return [(spec.size, torch.float32) for spec in self.specs or [ViewSpec(self.size)]]

    def fill(self, views: list[Tensor], epoch: int, index: NDArray) -> None:
        for number, out in enumerate(views):
            params, y, x = self._places(number, epoch, index)
            taps = self.specs[number].blur_taps if params else 1
            augment_images(
                self.store.pixels.numpy(), index, y, x, params, taps, self.data.mean, self.data.std, out.numpy()
            )

    def on_device(self, address: BatchKey, device: torch.device) -> Batch:
        """The same by the batched executor."""
        epoch, rows = address
        index, where = np.array(rows), torch.tensor(rows)
        images, views = self.store.take(where, device), []
        for number, (size, _) in enumerate(self.shapes()):
            params, y, x = self._places(number, epoch, index)
            view = resample(images, y, x, size, params.flip if params else None)
            view = apply_color_augmentations(view, params, self.specs[number].blur_taps) if params else view
            views.append(standardize_images(view, self.data.mean, self.data.std))
        return Batch(where.to(device), views, self.images.labels[where].to(device))

    def _places(self, number: int, epoch: int, index: NDArray) -> tuple[ViewParams | None, Axis, Axis]:
        """Parameters of a view, none of the evaluation view, and where its pixels are in the stored images."""
        sizes, ratio = self.store.sizes[index], self.store.ratio[index]
        params = sample(self.specs[number], self.seed, epoch, index, number, sizes) if self.specs else None
        y, x = crop_axes(params.box, self.specs[number].size) if params else eval_axes(sizes, self.size)
        return params, y.stretched(ratio[:, 0]), x.stretched(ratio[:, 1])


class CudaStreamLoader(ResumableLoader):
    """Batches made on the device: in a thread, on a stream of its own, one ahead of the one that is asked for."""

    def __init__(self, work: DecodedViews, order: Any, device: torch.device):
        super().__init__(work, batch_sampler=order, collate_fn=identity_collate, num_workers=0)
        self.work, self.order, self.device = work, order, device

    def batches(self) -> Iterator[Batch]:
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

        def made(address: BatchKey) -> tuple[Batch, torch.cuda.Event | None]:
            with torch.cuda.stream(side):  # of None: leaves everything as it is
                self.work.store.to(self.device)
                return self.work.on_device(address, self.device), side.record_event() if side else None

        waiting: deque[Future] = deque()
        pool = ThreadPoolExecutor(1, "views")
        try:
            for address in self.order:
                waiting.append(pool.submit(made, address))
                if len(waiting) > 1:
                    yield _joined(*waiting.popleft().result())
            while waiting:
                yield _joined(*waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _joined(batch: Batch, event: torch.cuda.Event | None) -> Batch:
    """The batch, for the stream that trains: it waits until the other stream has made it."""
    if event is not None:
        training = torch.cuda.current_stream(batch.index.device)
        training.wait_event(event)
        for tensor in (batch.index, batch.labels, *batch.views):
            tensor.record_stream(training)  # its memory is not given away before this stream is done with it
    return batch


class MemoryDataModule(DataModule):
    """num_workers counts threads, on CPU."""

    def __init__(
        self, data: Data, specs: list[ViewSpec], batch_size: int, seed: int, num_workers: int, accelerator: str,
        cache: Path | None = None,
    ):  # fmt: skip
        super().__init__(data, specs, batch_size, seed, num_workers, accelerator)
        self.stores = {split: DecodedImages(images, self.size, cache) for split, images in self.data.splits().items()}

    def train_dataset(self) -> DecodedViews:
        return DecodedViews(self.stores["train"], self.data, self.specs, self.size, self.seed)

    def eval_dataset(self, images: Images) -> DecodedViews:
        store = next(store for store in self.stores.values() if store.images is images)
        return DecodedViews(store, self.data, [], self.size, self.seed)

    def finalize_batch(self, batch: Batch, epoch: int) -> Batch:
        return batch  # as its loader made it

    def _loader(self, work: DecodedViews, order: Any, device: torch.device) -> ResumableLoader:  # type: ignore[override]
        return (
            ThreadPrefetchLoader(work, order, self.num_workers)
            if self.on_host
            else CudaStreamLoader(work, order, device)
        )
