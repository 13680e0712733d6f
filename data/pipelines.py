"""--pipeline name -> data module."""

from argparse import Namespace

import torch

from data.dali import DaliModule
from data.datasets import Data
from data.device import SHARE, DeviceModule, bytes_needed
from data.folder import CHECKED
from data.module import DataModule
from data.single import BATCHED_ON_CPU
from data.stream import StreamModule
from data.views import ViewSpec
from data.workers import TorchvisionModule
from utils.hardware import host_memory

PIPELINES: dict[str, type[DataModule]] = {
    "dali": DaliModule,
    "device": DeviceModule,
    "stream": StreamModule,
    "torchvision": TorchvisionModule,
}


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
    if name not in ("dali", "device"):  # these look for themselves
        for images in data.splits().values():
            if len(images) <= CHECKED:
                images.sizes()
    return PIPELINES[name](data, specs, args.batch_size, args.seed, args.num_workers)
