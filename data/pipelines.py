"""--pipeline name -> data module."""

from argparse import Namespace

from data.datasets import Data
from data.device import SHARE, DeviceModule, bytes_needed
from data.module import DataModule
from data.views import ViewSpec
from data.workers import TorchvisionModule
from utils.hardware import host_memory

PIPELINES: dict[str, type[DataModule]] = {"device": DeviceModule, "torchvision": TorchvisionModule}
CHECKED = 200_000  # files whose headers are read before the torchvision pipeline starts


def choose_pipeline(wanted: str, data: Data, size: int) -> tuple[str, str]:
    """(name, reason) for --pipeline auto: `device` where the decoded images fit in memory."""
    if wanted != "auto":
        return wanted, "as given"
    need, room = bytes_needed(data, size), int(SHARE * host_memory())
    name = "device" if need <= room else "torchvision"
    return name, f"decoded images need at most {need / 2**30:.2f} GiB of {room / 2**30:.1f} GiB set aside"


def build_pipeline(name: str, data: Data, specs: list[ViewSpec], args: Namespace) -> DataModule:
    """The data module of `name`, after every image was found readable (in a very large folder: after the start)."""
    if name != "device":
        for images in data.splits().values():
            if len(images) <= CHECKED:
                images.sizes()
    return PIPELINES[name](data, specs, args.batch_size, args.seed, args.num_workers)
