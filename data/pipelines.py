"""--pipeline name -> data module."""

from argparse import Namespace
from pathlib import Path

import torch

from data.dali import DaliModule
from data.datasets import Data
from data.device import SHARE, DeviceModule, bytes_needed, stored_side
from data.images import ArrayImages
from data.module import DataModule
from data.stream import StreamModule
from data.views import ViewSpec
from data.workers import TorchvisionModule
from utils.errors import UserError
from utils.hardware import host_memory, usable_cores

PIPELINES: dict[str, type[DataModule]] = {
    "dali": DaliModule,
    "device": DeviceModule,
    "stream": StreamModule,
    "torchvision": TorchvisionModule,
}
CROWD = 2  # workers per core that may be worth it: some wait for the disk
SMALL = 64  # pixels: larger views of a run on CPU come from the files


def choose_pipeline(wanted: str, data: Data, size: int, cache: str | None = None) -> tuple[str, str]:
    """(name, reason) for --pipeline auto: `device` with a cache or where decoded images fit in memory, else `stream`.

    On CPU, large views come from the files too: decoding costs little beside training, and keeps every pixel.
    """
    if cache and wanted not in ("auto", "device"):
        raise UserError(
            f"--cache keeps decoded images for --pipeline device, {wanted} was given; leave one of them out"
        )
    if wanted != "auto":
        return wanted, "as given"
    kept = f"images above {stored_side(size)} px are kept as squares of that side, views of them are softer"
    if cache:
        return "device", f"decoded images are kept in {cache}; {kept}"
    if size > SMALL and not torch.cuda.is_available():
        return "stream", f"on CPU, views above {SMALL} px are made from the files at every step, by threads"
    need, room = bytes_needed(data, size), int(SHARE * host_memory())
    reason = f"decoded images need at most {need / 2**30:.2f} GiB of {room / 2**30:.1f} GiB set aside"
    if need > room:
        return "stream", f"{reason}; threads decode them at every step"
    return "device", reason if isinstance(data.train, ArrayImages) else f"{reason}; {kept}"


def worker_notes(name: str, args: Namespace) -> list[str]:
    """A hint where --num_workers starts many more workers than this machine has cores."""
    workers = args.num_workers * args.processes // args.nodes if name != "device" else 0
    if workers <= CROWD * usable_cores():
        return []
    return [f"{workers} workers share {usable_cores()} cores; fewer --num_workers are as fast and need less memory"]


def build_pipeline(name: str, data: Data, specs: list[ViewSpec], args: Namespace) -> DataModule:
    """The data module of `name`, on images that are the same in every process."""
    data.check_ranks()
    more = {"cache": Path(args.cache)} if args.cache else {}
    return PIPELINES[name](data, specs, args.batch_size, args.seed, args.num_workers, **more)
