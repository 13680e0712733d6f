"""--pipeline memory: every training image decoded once, to uint8, and whole batches made of what is in memory.

On a GPU, and in its memory where there is room, the batched executor makes the next batch on a stream of its own while
the current one trains; on CPU threads make it with the compiled loops.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from data.augment_numba import augment_images
from data.augment_torch import Axis, apply_color_augmentations, crop_axes, resample, standardize_images
from data.datasets import Data
from data.decode_cache import DecodeCache
from data.images import ArrayImages, Images
from data.pipelines.base import DataModule
from data.pipelines.evaluation_views import kept_bytes, short_side
from data.pipelines.loaders import BatchKey, BatchKeys, ResumableLoader, UnfinishedBatch
from data.pipelines.prefetch import ThreadedDataset, ThreadPrefetchLoader
from data.sampler import ViewParams, sample
from data.views import ViewSpec
from utils.errors import UserError

MEMORY_SHARE = 0.4  # of the memory that decoded images may take


def stored_side(size: int) -> int:
    """Side of the square that a larger image is squeezed into; its own proportions are kept beside it.

    Twice the view while that is little memory, so that crops of a quarter of the image keep their detail; 256 for 224.
    """
    return max(short_side(size), min(2 * size, 256))


def bytes_needed(data: Data, size: int) -> int:
    """Bytes of the decoded training images and of the evaluation views that are kept, at most; reads no file."""
    side = stored_side(size)
    return len(data.train) * 3 * side * side + sum(kept_bytes(images, size) for images in data.splits().values())


class DecodedImages:
    """Decoded images: pixels (N, 3, H, W) uint8; sizes (N, 2), the heights and widths that they had.

    Images of one size that is not above `stored_side` stay as they are; all others are squeezed into that square,
    without losing where their pixels were: `ratio` (N, 2) leads from original pixels to stored ones. With a cache they
    are in a file there, of which the system keeps in memory what it has room for. Nothing is decoded before `load`.
    """

    def __init__(self, images: Images, size: int, cache: Path | None = None):
        if isinstance(images, ArrayImages) and cache:
            raise UserError(f"--cache {cache} has no effect on images that are not read from files; remove it")
        self.images = images
        self.cache = DecodeCache(cache, images) if cache else None
        self.sizes = self.cache.sizes() if self.cache else images.sizes()
        side = stored_side(size)
        self.same_size = bool((self.sizes == self.sizes[0]).all() and self.sizes.max() <= side)
        height, width = self.sizes[0].tolist() if self.same_size else (side, side)
        self.shape: tuple[int, int] = (height, width)
        self.ratio = np.array(self.shape) / self.sizes
        self.pixels = torch.empty(0, 3, height, width, dtype=torch.uint8)

    def load(self) -> "DecodedImages":
        """Decode the images, once; images that are in memory or in the cache already are taken from there."""
        if len(self.pixels):
            return self
        if self.same_size and isinstance(self.images, ArrayImages):
            self.pixels = self.images.pixels
        elif self.cache:
            self.pixels = self.cache.pixels(self.shape, self._decode)
        else:
            pixels = torch.empty(len(self.images), 3, *self.shape, dtype=torch.uint8)
            self._decode(pixels, range(len(self.images)))
            self.pixels = pixels
        return self

    def _decode(self, pixels: Tensor, rows: range) -> None:
        def decode_row(i: int) -> None:
            image = self.images.decode(i)
            same = tuple(image.shape[1:]) == self.shape
            pixels[i] = image if same else TF.resize(image, list(self.shape), antialias=True)

        n = len(self.images)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            done = pool.map(decode_row, rows)
            for _ in tqdm(done, "decoding", n, initial=rows.start, disable=True if n < 5000 else None):
                pass

    def to(self, device: torch.device) -> None:
        """Move the pixels to the device, once, when they leave it room."""
        if device.type == "cuda" and not self.pixels.is_cuda:
            free, _ = torch.cuda.mem_get_info(device)
            if self.pixels.numel() < MEMORY_SHARE * free:
                self.pixels = self.pixels.to(device)

    def take(self, index: Tensor, device: torch.device) -> Tensor:
        """(N, 3, H, W) uint8 on the device."""
        return self.pixels[index.to(self.pixels.device)].to(device)


class DecodedViews(ThreadedDataset):
    """Whole views of decoded images, made by threads on the host (`render_into`) or on a device (`on_device`)."""

    def __init__(self, decoded: DecodedImages, data: Data, specs: list[ViewSpec], seed: int):
        super().__init__(decoded.images, seed)
        self.decoded, self.data, self.specs = decoded, data, specs

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        return [(spec.size, torch.float32) for spec in self.specs]

    def render_into(self, views: list[Tensor], epoch: int, index: NDArray) -> list[ViewParams]:
        pixels, mean, std = self.decoded.pixels.numpy(), self.data.mean, self.data.std
        for number, (spec, out) in enumerate(zip(self.specs, views, strict=True)):
            params, y, x = self._draw(number, epoch, index)
            augment_images(pixels, index, y, x, params, spec.blur_taps, mean, std, out.numpy())
        return []

    def on_device(self, key: BatchKey, device: torch.device) -> UnfinishedBatch:
        """A batch of `render_into`'s views, made by the batched executor on the device."""
        epoch, rows = key
        index, positions = np.array(rows), torch.tensor(rows)
        images, views = self.decoded.take(positions, device), []
        for number, spec in enumerate(self.specs):
            params, y, x = self._draw(number, epoch, index)
            view = apply_color_augmentations(resample(images, y, x, spec.size, params.flip), params, spec.blur_taps)
            views.append(standardize_images(view, self.data.mean, self.data.std))
        return UnfinishedBatch(positions.to(device), views, self.images.labels[positions].to(device), [])

    def _draw(self, number: int, epoch: int, index: NDArray) -> tuple[ViewParams, Axis, Axis]:
        """Parameters of view `number`, and where its pixels lie in the decoded images, vertically and horizontally."""
        sizes, ratio = self.decoded.sizes[index], self.decoded.ratio[index]
        params = sample(self.specs[number], self.seed, epoch, index, number, sizes)
        y, x = crop_axes(params.box, self.specs[number].size)
        return params, y.stretched(ratio[:, 0]), x.stretched(ratio[:, 1])


class CudaStreamLoader(ResumableLoader):
    """Batches made on the device: in a thread, on a stream of its own, one ahead of the one that is asked for."""

    def __init__(self, dataset: DecodedViews, keys: BatchKeys, device: torch.device):
        super().__init__(dataset, keys)
        self.views, self.device = dataset, device

    def batches(self) -> Iterator[UnfinishedBatch]:
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

        def render(key: BatchKey) -> tuple[UnfinishedBatch, torch.cuda.Event | None]:
            with torch.cuda.stream(stream):  # None leaves everything as it is
                self.views.decoded.to(self.device)
                return self.views.on_device(key, self.device), stream.record_event() if stream else None

        waiting: deque[Future[tuple[UnfinishedBatch, torch.cuda.Event | None]]] = deque()
        pool = ThreadPoolExecutor(1, "views")
        try:
            for key in self.keys:
                waiting.append(pool.submit(render, key))
                if len(waiting) > 1:
                    yield _wait_for(*waiting.popleft().result())
            while waiting:
                yield _wait_for(*waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(batch: UnfinishedBatch, event: torch.cuda.Event | None) -> UnfinishedBatch:
    """The batch, for the stream that trains: it waits until the other stream has made it."""
    if event is not None:
        training = torch.cuda.current_stream(batch.index.device)
        training.wait_event(event)
        for tensor in (batch.index, batch.labels, *batch.views):
            tensor.record_stream(training)  # its memory is not given away before this stream is done with it
    return batch


class MemoryDataModule(DataModule):
    """num_workers counts threads, on CPU. The training images are decoded when a loader of them is first made."""

    def __init__(
        self, data: Data, specs: list[ViewSpec], batch_size: int, seed: int, num_workers: int, accelerator: str,
        cache: Path | None = None,
    ):  # fmt: skip
        super().__init__(data, specs, batch_size, seed, num_workers, accelerator)
        self.decoded = DecodedImages(data.train, self.size, cache)

    def train_dataset(self) -> DecodedViews:
        return DecodedViews(self.decoded.load(), self.data, self.specs, self.seed)

    def train_loader(self, keys: BatchKeys, device: torch.device) -> ResumableLoader:
        if self.on_host:
            return ThreadPrefetchLoader(self.train_dataset(), keys, self.num_workers)
        return CudaStreamLoader(self.train_dataset(), keys, device)
