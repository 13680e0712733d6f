"""Choose a pipeline by name or by what fits in memory, and build its data module."""

from collections.abc import Sequence
from pathlib import Path

from data.allocator import keep_freed_memory
from data.datasets import Data
from data.images import ArrayImages
from data.pipelines.base import DataModule
from data.pipelines.dali import DaliDataModule
from data.pipelines.memory import MEMORY_SHARE, MemoryDataModule, bytes_needed, stored_side
from data.pipelines.stream import StreamDataModule
from data.pipelines.torchvision_workers import TorchvisionDataModule
from data.report import image_notes
from data.views import ViewSpec
from utils.batch import LOW_RES
from utils.distributed import launched_rank
from utils.errors import UserError
from utils.hardware import host_memory, usable_cores
from utils.plan import HardwareConfig, ViewsConfig

PIPELINES: dict[str, type[DataModule]] = {
    "dali": DaliDataModule,
    "memory": MemoryDataModule,
    "stream": StreamDataModule,
    "torchvision": TorchvisionDataModule,
}
MAX_WORKERS_PER_CORE = 2  # more workers do not help: some wait for the disk, the others share the cores


def choose_pipeline(requested: str, data: Data, size: int, cache: str | None, accelerator: str) -> tuple[str, str]:
    """(name, reason) for --pipeline auto: memory with a cache or where decoded images fit in memory, else stream.

    On CPU, views above LOW_RES pixels are streamed too: decoding costs little beside training, and keeps every pixel.
    size: side of the large views. accelerator: "cpu", "cuda" or "mps".
    """
    if cache and requested not in ("auto", "memory"):
        raise UserError(f"--cache is for --pipeline memory, got --pipeline {requested}; remove one of them")
    if requested != "auto":
        return requested, "from the flag"
    side = stored_side(size)
    resized = f"images above {side} px are resized once to {side}x{side}; crops slightly blurrier"
    if cache:
        return "memory", f"decoded images are cached in {cache}; {resized}"
    if size > LOW_RES and accelerator != "cuda":
        return "stream", f"without CUDA, views above {LOW_RES} px are decoded from the files at every step, by threads"
    need, room = bytes_needed(data, size), int(MEMORY_SHARE * host_memory())
    reason = f"decoded images need {need / 2**30:.2f} GiB, limit {room / 2**30:.1f} GiB ({MEMORY_SHARE:.0%} of RAM)"
    if need > room:
        return "stream", f"{reason}; threads decode them at every step"
    return "memory", reason if isinstance(data.train, ArrayImages) else f"{reason}; {resized}"


def data_notes(data: Data, views: ViewsConfig, pipeline: str, workers: int, hardware: HardwareConfig) -> list[str]:
    """Remarks on the images, from a look of a second at most of the first rank, and on the workers that load them."""
    looked = image_notes(data, views) if launched_rank() == 0 else []
    return [*data.notes, *looked, *worker_notes(pipeline, workers, hardware)]


def worker_notes(pipeline: str, num_workers: int, hardware: HardwareConfig) -> list[str]:
    """A note where --num_workers starts many more workers than this machine has cores."""
    workers = num_workers * hardware.processes // hardware.nodes if pipeline != "memory" else 0
    if workers <= MAX_WORKERS_PER_CORE * usable_cores():
        return []
    return [f"{workers} workers share {usable_cores()} cores; fewer --num_workers are as fast and need less memory"]


def build_pipeline(
    name: str, data: Data, specs: Sequence[ViewSpec], batch_size: int, seed: int, num_workers: int,
    cache: str | None, accelerator: str, precision: str = "32",
) -> DataModule:  # fmt: skip
    """The data module `name`, on images that are the same in every process.

    batch_size: images of one process. cache: directory for decoded images, of "memory" only. accelerator: "cpu",
    "cuda" or "mps". precision: of the training, in which a GPU writes the training views. Side effect: the C library
    of this process keeps freed memory from here on, which cannot be put back (`keep_freed_memory`); views are large and
    short-lived.
    """
    data.check_ranks()
    keep_freed_memory()
    if name == "memory":
        return MemoryDataModule(
            data, list(specs), batch_size, seed, num_workers, accelerator, precision, Path(cache) if cache else None
        )
    return PIPELINES[name](data, list(specs), batch_size, seed, num_workers, accelerator, precision)
