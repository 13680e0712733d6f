"""--pipeline name -> data module."""

from argparse import Namespace

import torch

from data.datasets import Data
from data.device import SHARE, DeviceModule, bytes_needed
from data.module import DataModule
from data.stream import StreamModule
from data.views import ViewSpec
from data.workers import TorchvisionModule
from utils.hardware import host_memory

PIPELINES: dict[str, type[DataModule]] = {
    "device": DeviceModule,
    "stream": StreamModule,
    "torchvision": TorchvisionModule,
}
CHECKED = 200_000  # files whose headers are read before the pipelines that decode at every step start
BATCHED_ON_CPU = 64  # largest view that a CPU makes faster as part of a batch


def choose_pipeline(wanted: str, data: Data, size: int) -> tuple[str, str]:
    """(name, reason) for --pipeline auto: `device` where the decoded images fit in memory, else `stream`.

    On CPU, large views are made faster one at a time, in the threads of `stream`, wherever the images come from.
    """
    if wanted != "auto":
        return wanted, "as given"
    if size > BATCHED_ON_CPU and not torch.cuda.is_available():
        return "stream", f"on CPU, views above {BATCHED_ON_CPU} px are made faster by threads, one image at a time"
    need, room = bytes_needed(data, size), int(SHARE * host_memory())
    reason = f"decoded images need at most {need / 2**30:.2f} GiB of {room / 2**30:.1f} GiB set aside"
    return ("device", reason) if need <= room else ("stream", f"{reason}; threads decode them at every step")


def build_pipeline(name: str, data: Data, specs: list[ViewSpec], args: Namespace) -> DataModule:
    """The data module of `name`, after every image was found readable (in a very large folder: after the start)."""
    if name != "device":
        for images in data.splits().values():
            if len(images) <= CHECKED:
                images.sizes()
    return PIPELINES[name](data, specs, args.batch_size, args.seed, args.num_workers)
