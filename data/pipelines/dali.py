"""--pipeline dali: NVIDIA DALI reads, decodes, crops, resizes and flips; the shared executors do the colours.

For large image folders, above all where a GPU decodes. The boxes and flips are the shared sampler's, an image is
decoded once for all its views, and what leaves DALI is uint8 on the device that trains. Files that DALI cannot read or
reads differently are decoded by `decode_file`, in the main thread, and join the others there.

Deviation: where the filter of a resize reaches beyond the box, DALI repeats the box's outermost pixels and torchvision
leaves that part of the filter out. It concerns the outermost pixels of a view; the others differ by rounding.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.augment_torch import short_side
from data.folder import CHECKED, FolderImages
from data.images import DAMAGED, Images, reason
from data.pipelines.base import BatchDataset, BatchKey, DataModule, ResumableLoader, identity_collate
from data.sampler import sample
from data.views import ViewSpec
from utils.batch import Batch
from utils.errors import UserError

DEPTH = 2  # batches in DALI's queue
FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}  # of which DALI makes Pillow's pixels; not of GIF and some TIFF and PGM files
INSTALL = "pip install -r requirements-dali.txt"
INSTEAD = "choose another --pipeline"


@dataclass
class CropParams:
    """How one view is cut out of each of N images; arrays of N rows, in this order the inputs of DALI's graph.

    anchor, shape: (N, 2) int32 top and left, height and width of the box. size: (N, 2) float32 height and width to
    which the box is resized. top, left: (N,) float32 place of the view in that, as a share of what is left over.
    flip: (N,) int32.
    """

    anchor: NDArray
    shape: NDArray
    size: NDArray
    top: NDArray
    left: NDArray
    flip: NDArray

    @staticmethod
    def of(box: NDArray, size: NDArray, offset: NDArray, side: int, flip: NDArray) -> "CropParams":
        """The view of side `side` that lies at `offset` (N, 2) in the box (N, 4) resized to `size` (N, 2)."""
        share = offset / np.maximum(1, size - side)
        rows = (box[:, :2], box[:, 2:], size, share[:, 0], share[:, 1], flip)
        types = (np.int32, np.int32, np.float32, np.float32, np.float32, np.int32)
        return CropParams(*(np.ascontiguousarray(r, t) for r, t in zip(rows, types, strict=True)))


def train_crop(spec: ViewSpec, box: NDArray, flip: NDArray) -> CropParams:
    return CropParams.of(box, np.full((len(box), 2), spec.size), np.zeros((len(box), 2)), spec.size, flip)


def eval_crop(sizes: NDArray, side: int) -> CropParams:
    """The evaluation view, Resize and CenterCrop, of images of (N, 2) heights and widths."""
    size = short_side(side) * sizes // sizes.min(axis=1, keepdims=True)  # torchvision too rounds the long side down
    box = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    return CropParams.of(box, size, np.rint((size - side) / 2), side, np.zeros(len(sizes)))


class Headers:
    """Heights and widths of image files, and which of them are left to `decode_file`.

    Each header is read once: before the start, or in a very large folder when its image comes.
    """

    def __init__(self, images: Images):
        if not isinstance(images, FolderImages):
            raise UserError(
                "--pipeline dali reads image files and this data set is in memory; "
                "choose --pipeline device, or read class folders with --train_dir and --val_dir"
            )
        self.images = images
        self.sizes, self.ours = np.zeros((len(images), 2), np.int64), np.zeros(len(images), bool)
        if len(images) <= CHECKED:
            self.read(np.arange(len(images)))

    def read(self, rows: NDArray) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._look, rows[self.sizes[rows, 0] == 0].tolist()))

    def _look(self, i: int) -> None:
        path = self.images.path(i)
        try:
            with Image.open(path) as image:
                self.sizes[i], self.ours[i] = (image.height, image.width), not _for_dali(image)
        except DAMAGED as e:
            raise UserError(
                f"{path} is not a readable image ({reason(e)}); repair or remove it, or pass --on_bad_image skip"
            ) from e


def _for_dali(image: Image.Image) -> bool:
    """A JPEG of other colours than gray and YCbCr is converted in several ways."""
    rgb_inside = image.mode == "RGB" and image.info.get("adobe_transform") == 0
    return image.format in FORMATS and image.mode != "CMYK" and not rgb_inside


class CropSource(BatchDataset):
    """What DALI is told about a batch: for every view, the cut of each of its images."""

    def __init__(self, headers: Headers, sides: list[int], seed: int = 0):
        super().__init__(headers.images, seed)
        self.headers, self.sides = headers, sides

    def cuts(self, epoch: int, index: NDArray, sizes: NDArray) -> list[CropParams]:
        """One for each of `sides`."""
        return [eval_crop(sizes, side) for side in self.sides]


class TrainCropSource(CropSource):
    def __init__(self, headers: Headers, specs: list[ViewSpec], seed: int):
        super().__init__(headers, [spec.size for spec in specs], seed)
        self.specs = specs

    def cuts(self, epoch: int, index: NDArray, sizes: NDArray) -> list[CropParams]:
        drawn = [sample(spec, self.seed, epoch, index, number, sizes) for number, spec in enumerate(self.specs)]
        return [train_crop(spec, p.box, p.flip) for spec, p in zip(self.specs, drawn, strict=True)]


def inputs(work: CropSource, address: BatchKey) -> tuple[Any, ...]:
    """Of each image its path, whether it is decoded already, and if so its pixels; then the cuts of every view."""
    epoch, index = address
    rows, images = np.array(index), work.headers.images
    work.headers.read(rows)
    sizes, ours = work.headers.sizes[rows], work.headers.ours[rows]
    pixels = [np.zeros((1, 1, 3), np.uint8)] * len(rows)
    for i in np.flatnonzero(ours):
        pixels[i] = np.ascontiguousarray(images.decode(rows[i]).permute(1, 2, 0).numpy())
    paths = [np.frombuffer(os.fsencode(images.path(i)), np.uint8) for i in rows]
    return paths, ours, pixels, *(part for cut in work.cuts(epoch, rows, sizes) for part in vars(cut).values())


def build_graph(
    feed: Callable[[], tuple], sides: list[int], batch_size: int, threads: int, device: torch.device
) -> Any:
    """DALI's pipeline from `inputs` to one (N, 3, side, side) uint8 for each of `sides`, on the device."""
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device.type == "cuda"
    each = len(CropParams.__annotations__)

    def view(image: Any, side: int, anchor: Any, shape: Any, size: Any, top: Any, left: Any, flip: Any) -> Any:
        box = fn.slice(image, anchor, shape, axes=[0, 1])
        resized = fn.resize(box, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.crop_mirror_normalize(
            resized, crop=(side, side), crop_pos_y=top, crop_pos_x=left, mirror=flip, dtype=types.UINT8,
            output_layout="CHW",
        )  # fmt: skip

    @pipeline_def(enable_conditionals=True)
    def graph():
        path, decoded, pixels, *cuts = fn.external_source(feed, num_outputs=3 + each * len(sides), batch=True)
        if decoded:
            image = fn.reinterpret(pixels.gpu() if on_gpu else pixels, layout="HWC")
        else:
            image = fn.decoders.image(
                fn.io.file.read(path), device="mixed" if on_gpu else "cpu", output_type=types.RGB,
                adjust_orientation=False, jpeg_fancy_upsampling=True,
            )  # fmt: skip
        return tuple(view(image, side, *cuts[each * k : each * (k + 1)]) for k, side in enumerate(sides))

    pipe = graph(
        batch_size=batch_size, num_threads=threads, device_id=device.index or 0 if on_gpu else None,
        prefetch_queue_depth=DEPTH,
    )  # fmt: skip
    pipe.build()
    return pipe


class DaliSource:
    """Where DALI gets its batches: the addresses still to come, and those that are in its queue."""

    def __init__(self, work: CropSource):
        self.work = work
        self.addresses: Iterator[BatchKey] = iter(())
        self.ahead: deque[BatchKey] = deque()

    def __call__(self) -> tuple[Any, ...]:
        address = next(self.addresses)
        self.ahead.append(address)
        return inputs(self.work, address)


class DaliPipeline:
    """DALI's pipeline, built once and run over one order of addresses after the other; idle: nothing is in its queue.

    Where a run ended early or with an error, it is of no more use.
    """

    def __init__(self, work: CropSource, batch_size: int, threads: int, device: torch.device):
        self.work, self.device, self.threads = work, device, threads
        self.feed, self.idle = DaliSource(work), True  # a feed that knew the pipeline would keep it alive
        self.pipe = self._build(self.feed, batch_size)

    def run(self, order: Iterable[BatchKey]) -> Iterator[Batch]:
        self.feed.addresses, self.idle = iter(order), False
        while not self.idle:
            views = self._next()
            self.idle = len(self.feed.ahead) <= 1
            if self.idle:  # before the last batch is handed out: nobody may ask for what comes after it
                self.pipe.reset()
            if views:
                _, index = self.feed.ahead.popleft()
                where = torch.tensor(index)
                yield Batch(where, views, self.work.images.labels[where])

    def _next(self) -> list[Tensor]:
        """The views of the oldest batch in the queue; none when there is no batch."""
        from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

        try:
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            return [to_torch_tensor(out.as_tensor(), copy=True) for out in self.pipe.run(stream)]
        except StopIteration:
            return []
        except RuntimeError as e:
            raise self._explained(e) from e

    def _build(self, feed: Callable[[], tuple], batch_size: int) -> Any:
        try:
            return build_graph(feed, self.work.sides, batch_size, self.threads, self.device)
        except RuntimeError as e:
            raise UserError(f"DALI cannot run on {self.device} ({_last(e)}); {INSTEAD}") from e

    def _explained(self, error: RuntimeError) -> UserError:
        """What is wrong with which file of the batches in the queue, as far as that can be found out."""
        for epoch, index in self.feed.ahead:
            for i in index:
                try:
                    self.work.images.decode(i)
                except UserError as e:
                    return e
                alone = DaliSource(self.work)
                alone.addresses = iter([(epoch, [i])])
                try:
                    self._build(alone, 1).run()
                except RuntimeError as e:
                    path = self.work.headers.images.path(i)
                    return UserError(f"DALI cannot read {path} ({_last(e)}); save it anew, or {INSTEAD}")
        return UserError(f"DALI failed ({_last(error)}); {INSTEAD}")


def _last(error: Exception) -> str:
    """The line of DALI's message that says what happened."""
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip()]
    after = lines[lines.index("encountered") + 1 :] if "encountered" in lines else lines
    return after[0] if after else type(error).__name__


class DaliLoader(ResumableLoader):
    """Batches in the order of their addresses."""

    def __init__(self, work: CropSource, order: Any, start: Callable[[], DaliPipeline]):
        super().__init__(work, batch_sampler=order, collate_fn=identity_collate, num_workers=0)
        self.order, self.start = order, start
        self.runner: DaliPipeline | None = None

    def batches(self) -> Iterator[Batch]:
        runner, self.runner = self.runner or self.start(), None
        for batch in runner.run(self.order):
            if runner.idle:
                self.runner = runner  # the next epoch goes on with it; one that ended early is dropped, queue and all
            yield batch


class DaliDataModule(DataModule):
    """num_workers counts DALI's threads."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_dali()
        self.headers = {split: Headers(images) for split, images in self.data.splits().items()}

    def train_dataset(self) -> CropSource:
        return TrainCropSource(self.headers["train"], self.specs, self.seed)

    def eval_dataset(self, images: Images) -> CropSource:
        return CropSource(next(h for h in self.headers.values() if h.images is images), [self.size])

    def finalize_batch(self, batch: Batch, epoch: int) -> Batch:
        return super().finalize_batch(batch, epoch) if epoch < 0 else self.apply_color_augmentations(batch, epoch)

    def _loader(self, work: CropSource, order: Any, device: torch.device) -> DaliLoader:  # type: ignore[override]
        return DaliLoader(work, order, partial(DaliPipeline, work, self.batch_size, max(1, self.num_workers), device))


def check_dali() -> None:
    """Refuse, with the remedy, where DALI is absent, does not load, or was built for another CUDA than torch."""
    try:
        import nvidia.dali as dali
    except ModuleNotFoundError as e:
        raise UserError(f"--pipeline dali needs NVIDIA DALI ({e}): {INSTALL}") from e
    except (ImportError, OSError) as e:
        raise UserError(f"NVIDIA DALI is installed but does not load ({e}); {INSTALL}, or {INSTEAD}") from e
    built, torch_has = str(dali.__cuda_version__)[:2], (torch.version.cuda or "").split(".")[0]
    if torch.cuda.is_available() and built != torch_has:
        raise UserError(
            f"NVIDIA DALI was built for CUDA {built} and torch for CUDA {torch_has or 'none'}; "
            f"install the nvidia-dali-cuda{torch_has}0 that fits, or {INSTEAD}"
        )
