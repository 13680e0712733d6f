"""Views per second of the executors beside torchvision, image by image; both alternate, ratios come first.

    python3 -m bench.views --folder IMAGES --output bench/results/FILE.json

IMAGES holds class folders of photographs, as ImageNet's. SimCLR's views: crop, flip, jitter .4 .4 .2 .1 with
probability .8, gray .2, and at 224 pixels blur .5. The usual way beside which `stream` stands is torchvision's
ImageFolder, its transforms on Pillow images, and a DataLoader with as many workers as `stream` has threads; with
Pillow's blur, the fastest there is, and with torchvision's own. Differences are those of a whole view from
torchvision's operations with the same parameters, of 255.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from data.augment import crop_axes
from data.compiled import draw
from data.datasets import IMAGENET_MEAN, IMAGENET_STD, Data
from data.folder import read_folder
from data.sampler import ViewParams, sample
from data.stream import StreamModule
from data.views import SIGMA, ViewSpec
from data.workers import draw_view
from utils.hardware import keep_freed_memory
from utils.run import provenance

SMALL = ViewSpec(32, saturation=0.2)
LARGE = ViewSpec(224, saturation=0.2, blur=0.5)
Row = tuple[Callable[[], int], Callable[[], int], dict[str, float]]  # ours and theirs, each counting; differences


def one_by_one(images: Tensor, params: ViewParams, spec: ViewSpec) -> Tensor:
    return torch.stack([draw_view(image, params, i, spec) for i, image in enumerate(images)])


def differences(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    apart = (ours - theirs).abs() * 255
    return {"largest_difference": apart.max().item(), "mean_difference": apart.mean().item()}


def small_row() -> Row:
    """A batch of 256 images of 32 pixels, two views each, on one core."""
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index, sizes = np.arange(256), np.full((256, 2), 32)

    def views(draw: Callable) -> list[Tensor]:
        return [draw(images, sample(SMALL, 0, 0, index, number, sizes), SMALL) for number in range(2)]

    def batched(x: Tensor, params: ViewParams, spec: ViewSpec) -> Tensor:
        out = torch.empty(len(x), 3, spec.size, spec.size)
        axes = crop_axes(params.box, spec.size)
        draw(x.numpy(), index, *axes, params, spec.blur_taps, (0.0,) * 3, (1.0,) * 3, out.numpy())
        return out

    def counted(draw: Callable) -> Callable[[], int]:
        return lambda: sum(len(v) for v in views(draw))

    return counted(batched), counted(one_by_one), differences(views(batched)[0], views(one_by_one)[0])


class Twice:
    """Two views of an image, as users write it."""

    def __init__(self, blur: Callable) -> None:
        self.view = T.Compose([
            T.RandomResizedCrop(LARGE.size, LARGE.scale),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([blur], p=0.5),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ])  # fmt: skip

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self.view(image), self.view(image)


def pillow_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA)))


BLURS = {"Pillow's": T.Lambda(pillow_blur), "torchvision's": T.GaussianBlur(LARGE.blur_taps, SIGMA)}


def large_row(folder: Path, workers: int, batch_size: int, blur: Callable) -> Row:
    """From files to normalized batches of two views of 224 pixels."""
    images = read_folder(folder)
    data = Data(images, None, len(images.classes), IMAGENET_MEAN, IMAGENET_STD, [])
    module = StreamModule(data, [LARGE, LARGE], batch_size, 0, workers)
    ours = module.training(np.arange(len(images)), torch.device("cpu"))
    theirs = DataLoader(ImageFolder(str(folder), Twice(blur)), batch_size, shuffle=True, drop_last=True,
                        num_workers=workers, persistent_workers=True)  # fmt: skip

    def reference() -> int:
        return sum(2 * len(labels) for _, labels in theirs)

    def streamed() -> int:
        return sum(2 * len(batch.index) for batch in ours.epoch(0))

    reference()  # starts the workers
    return streamed, reference, _apart(module)


def _apart(module: StreamModule) -> dict[str, float]:
    """Largest and mean difference of 64 views as they are streamed."""
    index = list(range(min(64, len(module.data.train))))
    batch = next(module.augmented(index, torch.device("cpu")))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = []
    for i in index:
        image = module.data.train.decode(i)
        params = sample(LARGE, module.seed, 0, np.array([i]), 0, np.array([image.shape[1:]]))
        theirs.append(draw_view(image, params, 0, LARGE))
    return differences(batch.views[0][: len(index)] * std + mean, torch.stack(theirs[: len(batch.index)]))


def rate(run: Callable[[], int], least: float) -> float:
    """Views per second over at least so many seconds."""
    start, views = time.perf_counter(), 0
    while time.perf_counter() - start < least:
        views += run()
    return views / (time.perf_counter() - start)


def measure(name: str, row: Row, rounds: int) -> dict:
    ours, theirs, apart = row
    pairs = [(rate(ours, 2), rate(theirs, 2)) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name:<36} {ratio:>6.1f} {fast:>10.0f} {slow:>12.0f} {apart['largest_difference']:>9.4f} "
          f"{apart['mean_difference']:>8.4f}", flush=True)  # fmt: skip
    return {"name": name, "ratio": ratio, "views_per_second": fast, "torchvision": slow, "rounds": pairs} | apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="class folders of photographs; without it only small images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(f"{device}, torch {torch.__version__}; views per second, medians of {args.rounds}\n")
    print(f"{'two views':<36} {'ratio':>6} {'ours':>10} {'torchvision':>12} {'largest':>9} {'mean':>8}")
    torch.set_num_threads(1)
    keep_freed_memory()  # as every data module does
    rows = [measure("32 px in memory, one core", small_row(), args.rounds)]
    if args.folder:
        for name, blur in BLURS.items():
            row = large_row(args.folder, args.workers, args.batch_size, blur)
            rows.append(measure(f"224 px, {args.workers} workers, {name} blur", row, args.rounds))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"device": device, "rows": rows} | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()
