"""--pipeline dali: NVIDIA DALI reads, decodes, crops, resizes and flips; the shared executors do the colours.

For large image folders, above all where a GPU decodes. The boxes and flips are the shared sampler's, an image is
decoded once for all its views, and what leaves DALI is uint8 on the device that trains. Files that DALI cannot read or
reads differently are decoded by `decode_file`, in the main thread, and join the others there. Evaluation images do not
pass through DALI, which resizes them in another way than torchvision.

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

from data.datasets import Data
from data.encoded import CHECKED
from data.folder import FolderImages
from data.images import DAMAGED, Images, open_image, reason
from data.pipelines.base import DataModule
from data.pipelines.loaders import BatchDataset, BatchKey, BatchKeys, ResumableLoader, UnfinishedBatch, without_flip
from data.sampler import ViewParams, sample
from data.views import ViewSpec
from utils.errors import UserError
from utils.names import shown

PREFETCH = 2  # batches in DALI's queue
FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}  # of which DALI makes Pillow's pixels; not of GIF and some TIFF and PGM files
INSTALL = "pip install -r requirements-dali.txt"
INSTEAD = "choose another --pipeline"


@dataclass
class CropParams:
    """The boxes of one view in each of N images; arrays of N rows, in this order the inputs of DALI's graph.

    anchor, shape: (N, 2) int32 top and left, height and width of the box. flip: (N,) int32.
    """

    anchor: NDArray
    shape: NDArray
    flip: NDArray

    @staticmethod
    def of(params: ViewParams) -> "CropParams":
        """The boxes and flips of drawn parameters, as DALI's graph takes them."""
        box = np.ascontiguousarray(params.box, np.int32)
        return CropParams(box[:, :2].copy(), box[:, 2:].copy(), np.ascontiguousarray(params.flip, np.int32))


class Headers:
    """Heights and widths of image files, and which files are decoded on the host by `decode_file`.

    Each header is read once: before the start, or in a very large folder when its image comes.
    """

    def __init__(self, images: Images):
        if not isinstance(images, FolderImages):
            raise UserError(
                "--pipeline dali reads image files, and these images are in memory or inside of other files; "
                "choose --pipeline memory or stream, or read class folders with --train_dir and --val_dir"
            )
        self.images = images
        self.sizes, self.decode_on_host = np.zeros((len(images), 2), np.int64), np.zeros(len(images), bool)
        if len(images) <= CHECKED:
            self.read(np.arange(len(images)))

    def read(self, rows: NDArray) -> None:
        """Read the headers of the images `rows` that were not read before."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._read_one, rows[self.sizes[rows, 0] == 0].tolist()))

    def _read_one(self, i: int) -> None:
        path = self.images.path(i)
        try:
            with open_image(path) as image:
                self.sizes[i], self.decode_on_host[i] = (image.height, image.width), not _dali_decodes(image)
        except DAMAGED as e:
            raise UserError(
                f"{shown(path)} is not a readable image ({reason(e)}); repair or remove it, or pass --on_bad_image skip"
            ) from e


def _dali_decodes(image: Image.Image) -> bool:
    """Whether DALI's pixels are Pillow's; not those of JPEGs in CMYK or RGB, which are converted in several ways."""
    rgb_inside = image.mode == "RGB" and image.info.get("adobe_transform") == 0
    return image.format in FORMATS and image.mode != "CMYK" and not rgb_inside


class CropSource(BatchDataset):
    """The training images as DALI's graph reads them: paths, and for every view the boxes and flips of a batch."""

    def __init__(self, headers: Headers, specs: list[ViewSpec], seed: int):
        super().__init__(headers.images, seed)
        self.headers, self.specs = headers, specs

    @property
    def sides(self) -> list[int]:
        return [spec.size for spec in self.specs]

    def draw(self, key: BatchKey) -> list[ViewParams]:
        """The parameters of every view of a batch."""
        epoch, index = key
        rows = np.array(index)
        self.headers.read(rows)
        sizes = self.headers.sizes[rows]
        return [sample(spec, self.seed, epoch, rows, number, sizes) for number, spec in enumerate(self.specs)]


def graph_inputs(dataset: CropSource, key: BatchKey, params: list[ViewParams]) -> tuple[Any, ...]:
    """Paths of a batch, which images are decoded on the host, their pixels; then the arrays of every view's crops."""
    rows, images = np.array(key[1]), dataset.headers.images
    on_host = dataset.headers.decode_on_host[rows]
    pixels = [np.zeros((1, 1, 3), np.uint8)] * len(rows)
    for i in rows[~on_host]:
        images.check_unchanged(i)
    for i in np.flatnonzero(on_host):
        pixels[i] = np.ascontiguousarray(images.decode(rows[i]).permute(1, 2, 0).numpy())
    paths = [np.frombuffer(os.fsencode(images.path(i)), np.uint8) for i in rows]
    return paths, on_host, pixels, *(array for p in params for array in vars(CropParams.of(p)).values())


def build_graph(
    source: Callable[[], tuple[Any, ...]], sides: list[int], batch_size: int, threads: int, device: torch.device
) -> Any:
    """DALI's pipeline from `graph_inputs` to one (N, 3, side, side) uint8 for each of `sides`, on the device."""
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device.type == "cuda"
    each = len(CropParams.__annotations__)

    def view(image: Any, side: int, anchor: Any, shape: Any, flip: Any) -> Any:
        box = fn.slice(image, anchor, shape, axes=[0, 1])
        resized = fn.resize(box, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.crop_mirror_normalize(resized, mirror=flip, dtype=types.UINT8, output_layout="CHW")

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        path, decoded, pixels, *crops = fn.external_source(source, num_outputs=3 + each * len(sides), batch=True)
        if decoded:
            image = fn.reinterpret(pixels.gpu() if on_gpu else pixels, layout="HWC")
        else:
            image = fn.decoders.image(
                fn.io.file.read(path), device="mixed" if on_gpu else "cpu", output_type=types.RGB,
                adjust_orientation=False, jpeg_fancy_upsampling=True,
            )  # fmt: skip
        return tuple(view(image, side, *crops[each * k : each * (k + 1)]) for k, side in enumerate(sides))

    pipe = graph(
        batch_size=batch_size, num_threads=threads, device_id=device.index or 0 if on_gpu else None,
        prefetch_queue_depth=PREFETCH,
    )  # fmt: skip
    pipe.build()
    return pipe


class DaliSource:
    """The callable that DALI asks for batches: it holds the keys still to come, and those in DALI's queue."""

    def __init__(self, dataset: CropSource):
        self.dataset = dataset
        self.keys: Iterator[BatchKey] = iter(())
        self.queued: deque[tuple[BatchKey, list[ViewParams]]] = deque()

    def __call__(self) -> tuple[Any, ...]:
        key = next(self.keys)
        # Queued before the parameters are drawn: an error that names a file looks among the queued batches.
        params: list[ViewParams] = []
        self.queued.append((key, params))
        params += self.dataset.draw(key)
        return graph_inputs(self.dataset, key, params)


class DaliPipeline:
    """DALI's pipeline, built once and run over one order of keys after the other; idle: nothing is in its queue.

    A pipeline whose run ended early or with an error is of no more use.
    """

    def __init__(self, dataset: CropSource, batch_size: int, threads: int, device: torch.device):
        self.dataset, self.device, self.threads = dataset, device, threads
        self.source, self.idle = DaliSource(dataset), True  # a source that knew the pipeline would keep it alive
        self.pipe = self._build(self.source, batch_size)

    def run(self, keys: Iterable[BatchKey]) -> Iterator[UnfinishedBatch]:
        """The batches of the keys, in their order."""
        self.source.keys, self.idle = iter(keys), False
        while not self.idle:
            views = self._next()
            self.idle = len(self.source.queued) <= 1
            if self.idle:  # before the last batch is handed out: nobody may ask for what comes after it
                self.pipe.reset()
            if views:
                (_, index), params = self.source.queued.popleft()
                rows = torch.tensor(index)
                left = [without_flip(p) for p in params]
                labels = self.dataset.images.labels[rows]
                if self.device.type == "cuda":  # from pinned memory it copies while the host goes on
                    rows, labels = rows.pin_memory(), labels.pin_memory()
                yield UnfinishedBatch(rows, views, labels, left)

    def _next(self) -> list[Tensor]:
        """The views of the oldest batch in the queue; none when there is no batch."""
        from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

        try:
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            return [to_torch_tensor(out.as_tensor(), copy=True) for out in self.pipe.run(stream)]
        except StopIteration:
            return []
        except RuntimeError as e:
            raise self._explain(e) from e

    def _build(self, source: Callable[[], tuple[Any, ...]], batch_size: int) -> Any:
        try:
            return build_graph(source, self.dataset.sides, batch_size, self.threads, self.device)
        except RuntimeError as e:
            raise UserError(f"DALI cannot run on {self.device} ({_last_line(e)}); {INSTEAD}") from e

    def _explain(self, error: RuntimeError) -> UserError:
        """An error that names the file of the queued batches that DALI cannot read, as far as that can be found out."""
        for (epoch, index), _ in self.source.queued:
            for i in index:
                try:
                    self.dataset.images.decode(i)
                except UserError as e:
                    return e
                alone = DaliSource(self.dataset)
                alone.keys = iter([(epoch, [i])])
                try:
                    self._build(alone, 1).run()
                except RuntimeError as e:
                    path = self.dataset.headers.images.path(i)
                    return UserError(f"DALI cannot read {shown(path)} ({_last_line(e)}); save it anew, or {INSTEAD}")
        return UserError(f"DALI failed ({_last_line(error)}); {INSTEAD}")


def _last_line(error: Exception) -> str:
    """The line of DALI's message that says what happened."""
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip()]
    after = lines[lines.index("encountered") + 1 :] if "encountered" in lines else lines
    return after[0] if after else type(error).__name__


class DaliLoader(ResumableLoader):
    """Batches in the order of their keys, by a DALI pipeline that `build` makes when the first epoch begins."""

    def __init__(self, dataset: CropSource, keys: BatchKeys, build: Callable[[], DaliPipeline]):
        super().__init__(dataset, keys)
        self.build = build
        self.pipeline: DaliPipeline | None = None

    def batches(self) -> Iterator[UnfinishedBatch]:
        pipeline, self.pipeline = self.pipeline or self.build(), None
        for batch in pipeline.run(self.keys):
            if pipeline.idle:
                self.pipeline = pipeline  # the next epoch uses it; one that ended early is dropped, queue and all
            yield batch


class DaliDataModule(DataModule):
    """num_workers counts DALI's threads."""

    def __init__(
        self, data: Data, specs: list[ViewSpec], batch_size: int, seed: int, num_workers: int, accelerator: str,
        precision: str = "32",
    ):  # fmt: skip
        super().__init__(data, specs, batch_size, seed, num_workers, accelerator, precision)
        check_dali(accelerator)
        self.headers = Headers(data.train)

    def train_dataset(self) -> CropSource:
        return CropSource(self.headers, self.specs, self.seed)

    def train_loader(self, keys: BatchKeys, device: torch.device) -> DaliLoader:
        dataset, threads = self.train_dataset(), max(1, self.num_workers)
        return DaliLoader(dataset, keys, partial(DaliPipeline, dataset, self.batch_size, threads, device))


def check_dali(accelerator: str) -> None:
    """Refuse, with the remedy, where DALI is absent, does not load, or was built for another CUDA than torch."""
    try:
        import nvidia.dali as dali
    except ModuleNotFoundError as e:
        raise UserError(f"--pipeline dali needs NVIDIA DALI ({e}): {INSTALL}") from e
    except (ImportError, OSError) as e:
        raise UserError(f"NVIDIA DALI is installed but does not load ({e}); {INSTALL}, or {INSTEAD}") from e
    built, torch_has = str(dali.__cuda_version__)[:2], (torch.version.cuda or "").split(".")[0]
    if accelerator == "cuda" and built != torch_has:
        raise UserError(
            f"NVIDIA DALI was built for CUDA {built} and torch for CUDA {torch_has or 'none'}; "
            f"install the nvidia-dali-cuda{torch_has}0 that fits, or {INSTEAD}"
        )
