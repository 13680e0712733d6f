"""--pipeline memory: every training image decoded once, to uint8, and whole batches made of what is in memory.

On a GPU, and from its memory where there is room, the next batch is made on a stream of its own while the current one
trains; on CPU threads make it with the compiled loops.
"""

import functools
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
from data.augment_torch import Axis, Views, crop_axes, upload
from data.datasets import Data
from data.decode_cache import DecodeCache
from data.images import ArrayImages, Images
from data.pipelines.base import DataModule
from data.pipelines.evaluation_views import kept_bytes, short_side
from data.pipelines.kernels import augment_views
from data.pipelines.loaders import BatchKey, BatchKeys, ResumableLoader, UnfinishedBatch
from data.pipelines.prefetch import ThreadedDataset, ThreadPrefetchLoader
from data.sampler import ViewParams, sample
from data.views import ViewSpec
from utils.errors import UserError

CPU = torch.device("cpu")
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
        self.kept_on_host = False  # a GPU has no room for the pixels

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

    def to(self, device: torch.device) -> "DecodedImages":
        """Move the pixels to the device, a GPU only where they leave it room; that is found out once."""
        if device.type == "cuda" and not self.pixels.is_cuda and not self.kept_on_host:
            free, _ = torch.cuda.mem_get_info(device)
            self.kept_on_host = self.pixels.numel() >= MEMORY_SHARE * free
        if device.type != "cuda" or not self.kept_on_host:
            self.pixels = self.pixels.to(device)
        return self

    def take(self, index: NDArray, device: torch.device) -> tuple[Tensor, NDArray]:
        """Pixels on the device, and the rows of them that are the images `index` (N,)."""
        if self.pixels.device == device:
            return self.pixels, index
        rows = torch.from_numpy(index)
        chosen = torch.empty(len(rows), 3, *self.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        torch.index_select(self.pixels, 0, rows, out=chosen)
        return chosen.to(device, non_blocking=True), np.arange(len(rows))


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

    def on_device(self, key: BatchKey, device: torch.device, dtype: torch.dtype) -> UnfinishedBatch:
        """A batch of `render_into`'s views, of type `dtype`, made by the device's executor."""
        index = np.array(key[1])
        made = augment_views(self.views_to_make(key, device), self.data.mean, self.data.std, dtype)
        positions, labels = upload(np.stack([index, self.images.labels[torch.from_numpy(index)].numpy()]), device)
        return UnfinishedBatch(positions, made, labels, [])

    def views_to_make(self, key: BatchKey, device: torch.device) -> list[Views]:
        """The views of a batch as an executor takes them, with their pixels on the device."""
        epoch, index = key[0], np.array(key[1])
        pixels, image = self.decoded.take(index, device)
        views = []
        for number, spec in enumerate(self.specs):
            params, y, x = self._draw(number, epoch, index)
            views.append(Views(pixels, image, params, y, x, spec.size, spec.blur_taps))
        return views

    def _draw(self, number: int, epoch: int, index: NDArray) -> tuple[ViewParams, Axis, Axis]:
        """Parameters of view `number`, and where its pixels lie in the decoded images, vertically and horizontally."""
        sizes, ratio = self.decoded.sizes[index], self.decoded.ratio[index]
        params = sample(self.specs[number], self.seed, epoch, index, number, sizes)
        y, x = crop_axes(params.box, self.specs[number].size)
        return params, y.stretched(ratio[:, 0]), x.stretched(ratio[:, 1])


@functools.cache
def rendering_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream on which a CUDA device makes views; always the same, since freed memory stays with its stream."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


class CudaStreamLoader(ResumableLoader):
    """Batches made on the device: in a thread, on a stream of its own, one ahead of the one that is asked for.

    dtype: of the views.
    """

    def __init__(self, dataset: DecodedViews, keys: BatchKeys, device: torch.device):
        super().__init__(dataset, keys)
        self.views, self.device, self.dtype = dataset, with_index(device), torch.float32

    def batches(self) -> Iterator[UnfinishedBatch]:
        stream = rendering_stream(self.device)

        def render(key: BatchKey) -> tuple[UnfinishedBatch, torch.cuda.Event | None]:
            with torch.cuda.stream(stream):  # None leaves everything as it is
                self.views.decoded.to(self.device)
                batch = self.views.on_device(key, self.device, self.dtype)
                return batch, stream.record_event() if stream else None

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


def with_index(device: torch.device) -> torch.device:
    """The device with its number: "cuda" is the current one."""
    current = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if current else device


class MemoryDataModule(DataModule):
    """num_workers counts threads, on CPU. The training images are decoded when a loader of them is first made."""

    def __init__(
        self, data: Data, specs: list[ViewSpec], batch_size: int, seed: int, num_workers: int, accelerator: str,
        precision: str = "32", cache: Path | None = None,
    ):  # fmt: skip
        super().__init__(data, specs, batch_size, seed, num_workers, accelerator, precision)
        self.decoded = DecodedImages(data.train, self.size, cache)

    def train_dataset(self) -> DecodedViews:
        return DecodedViews(self.decoded.load(), self.data, self.specs, self.seed)

    def train_loader(self, keys: BatchKeys, device: torch.device) -> ResumableLoader:
        if device.type == "cuda":
            return CudaStreamLoader(self.train_dataset(), keys, device)
        self.decoded.to(CPU)
        return ThreadPrefetchLoader(self.train_dataset(), keys, self.num_workers, device)

    def train_dataloader(self) -> ResumableLoader:
        loader = super().train_dataloader()
        if isinstance(loader, CudaStreamLoader):
            loader.dtype = self.dtype  # all other uses of the views are in full precision
        return loader
