"""Decoding and views by Lookalike, and the operations of --pipeline torchvision with the same parameters."""

import itertools

import numpy as np
import torch
from torch import Tensor

from bench.sides import Settings, Work
from bench.task import (
    BATCH,
    EPOCH,
    IN_MEMORY,
    LARGE,
    SMALL,
    WORKERS,
    each,
    from_files,
    images_in_memory,
    jpeg_files,
    rate,
    synchronize,
)
from bench.usual import by_pillow
from data import augment_torch
from data.allocator import keep_freed_memory
from data.augment_torch import standardize_images
from data.datasets import IMAGENET_MEAN, IMAGENET_STD, Data
from data.folder import read_folder
from data.images import ArrayImages, Images, decode_file
from data.pipelines.base import DataModule
from data.pipelines.choose import build_pipeline
from data.pipelines.kernels import augment_views
from data.pipelines.loaders import EpochBatchSampler
from data.pipelines.memory import MemoryDataModule
from data.pipelines.prefetch import ThreadPrefetchLoader
from data.pipelines.stream import StreamedViews
from data.pipelines.torchvision_workers import augment_image
from data.sampler import sample
from data.views import ViewSpec

CPU = torch.device("cpu")
CHECKED = 64  # images whose pixels are compared


def apart(module: DataModule, device: torch.device) -> dict[str, float]:
    """Differences between views and those of torchvision's operations with the same parameters, in steps of 255."""
    images, spec = module.data.train, module.specs[0]
    batch = next(module.augmented_loader(range(min(CHECKED, len(images))), device))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.data.mean, module.data.std))

    def reference(i: int) -> Tensor:
        image = images.decode(i)
        return augment_image(
            image, sample(spec, module.seed, 0, np.array([i]), 0, np.array([image.shape[1:]])), 0, spec
        )

    off = 255 * (batch.views[0].cpu() * std + mean - torch.stack([reference(int(i)) for i in batch.index])).abs()
    return {"largest_difference": off.max().item(), "mean_difference": off.mean().item()}


def decode(settings: Settings) -> Work:
    assert settings.photographs
    files = jpeg_files(settings.photographs)
    keep_freed_memory()  # as every pipeline does

    def off(file: str) -> int:
        return int(np.abs(decode_file(file).permute(1, 2, 0).numpy().astype(int) - by_pillow(file)).max())

    return Work(
        lambda: rate(lambda: each(files, decode_file), settings.seconds),
        lambda: {"largest_difference": max(map(off, files[:CHECKED]))},
    )


def as_data(images: Images) -> Data:
    return Data(images, None, max(1, len(images.classes)), IMAGENET_MEAN, IMAGENET_STD, [])


def in_memory(pixels: Tensor) -> Data:
    return as_data(ArrayImages(pixels, torch.zeros(len(pixels)).long()))


def memory_pipeline(settings: Settings, spec: ViewSpec = SMALL) -> Work:
    """Two views of each image in memory, by --pipeline memory without threads."""
    module = build_pipeline("memory", in_memory(images_in_memory(spec)), [spec, spec], IN_MEMORY, 0, 0, None, "cpu")
    batches, epochs = module.train_subset_loader(np.arange(len(module.data.train)), CPU), itertools.count()

    def epoch() -> int:
        return sum(len(view) for batch in batches.epoch(next(epochs)) for view in batch.views)

    return Work(lambda: rate(epoch, settings.seconds), lambda: apart(module, CPU))


def one_by_one(settings: Settings) -> Work:
    """Two views of each image in memory, by the operations of --pipeline torchvision."""
    images, epochs = images_in_memory(SMALL), itertools.count()
    index, sizes = np.arange(IN_MEMORY), np.full((IN_MEMORY, 2), SMALL.size)

    def batch() -> int:
        epoch = next(epochs)
        for number in range(2):
            params = sample(SMALL, 0, epoch, index, number, sizes)
            views = torch.stack([augment_image(image, params, i, SMALL) for i, image in enumerate(images)])
            standardize_images(views, IMAGENET_MEAN, IMAGENET_STD)
        return 2 * IN_MEMORY

    return Work(lambda: rate(batch, settings.seconds))


def streamed(
    settings: Settings, specs: tuple[ViewSpec, ...] = (LARGE, LARGE), batch_size: int = BATCH, workers: int = WORKERS
) -> Work:
    """Images per second times two, from files to finished batches."""
    assert settings.photographs
    images = read_folder(settings.photographs)
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    module = build_pipeline("stream", as_data(images), list(specs), batch_size, 0, workers, None, accelerator)
    device = torch.device(accelerator)
    loader = module.train_subset_loader(np.resize(np.arange(len(images)), EPOCH * batch_size), device)
    epochs = itertools.count()
    return Work(from_files(lambda: loader.epoch(next(epochs)), batch_size), lambda: apart(module, device))


def cropped(settings: Settings) -> Work:
    """The work of the threads of --pipeline stream where a GPU does the rest: decoding and crops, in uint8."""
    assert settings.photographs
    images = read_folder(settings.photographs)
    work = StreamedViews(as_data(images), [LARGE, LARGE], 0, finished=False)
    order = EpochBatchSampler(EPOCH * BATCH, BATCH, 0, np.resize(np.arange(len(images)), EPOCH * BATCH))
    loader = ThreadPrefetchLoader(work, order, WORKERS, CPU)
    return Work(from_files(lambda: loader))


def on_gpu(settings: Settings, batched: bool = False) -> Work:
    """Milliseconds of 512 views of 224 pixels in bfloat16 from decoded images of 256 pixels that are on the GPU.

    batched: by the batched executor, else by the executor that training uses.
    """
    device = torch.device("cuda", 0)
    module = MemoryDataModule(
        in_memory(images_in_memory(LARGE)), [LARGE, LARGE], IN_MEMORY, 0, 0, device.type, "bf16-mixed"
    )
    work, epochs = module.train_dataset(), itertools.count()
    work.decoded.to(device)
    executor = augment_torch.augment_views if batched else augment_views

    def batch() -> int:
        views = work.views_to_make((next(epochs), list(range(IN_MEMORY))), device)
        executor(views, IMAGENET_MEAN, IMAGENET_STD, module.dtype)
        synchronize()
        return 1

    # How far the views are from torchvision's is asked of the executor that training uses, not of the one beside it.
    return Work(lambda: 1000 / rate(batch, settings.seconds), dict if batched else lambda: apart(module, device))
