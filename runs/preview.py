"""preview.html: what a run would see, do and take, before it is started."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from runs.callbacks import duration
from runs.estimate import Estimate, disk_needed, estimate, free_disk
from utils.distributed import launched_size, rank_zero_print
from utils.errors import UserError
from utils.files import disk_errors_named, write_text_atomically
from utils.hardware import local_device, machine_memory
from utils.html import Html, bars, element, items, page, picture, table
from utils.plan import Plan

FILE = "preview.html"
IMAGES = 8  # whose views are shown
PAIRS = 6  # of copies of a kind that are shown
THUMBNAIL = 224  # longest side of an image beside its views
BINS = 20  # of a histogram
LABEL_END = 19  # of a line of the printed plan, where its text begins


def write_preview(output: str, plan: Plan, method: Any, module: Any, described: str, remarks: Sequence[str]) -> None:
    """Write preview.html into the folder `output`.

    method, module: of the run, not usable for it afterwards. described: the plan as printed. remarks: notes beside it.
    """
    if launched_size() > 1:
        raise UserError(f"--preview is for one process, got {launched_size()}; start it without a launcher")
    path = Path(output) / FILE
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    views, data = _views(plan, method, module), _data(module)
    took = estimate(plan, method, cast(LightningDataModule, module))
    backbone = sum(value.nbytes for value in method.eval_backbone().state_dict().values())
    needs = list(_needs(plan, took, disk_needed(plan, method.checkpoint_bytes(), backbone), free_disk(path.parent)))
    for name, text in needs:
        rank_zero_print(f"  {name:<16} {text}")
    head, *lines = described.splitlines()
    rows = [(line[:LABEL_END].strip(), line[LABEL_END:]) for line in lines]
    sections = [
        ("Advice", items(remarks, "warn") if remarks else element("p", "Nothing that does not fit was found.")),
        ("Views", views),
        ("Data", data),
        ("What the run will take", table(needs)),
        ("Plan", table(rows, caption=head)),
    ]
    title = f"Preview: {plan.method}, {plan.backbone.name} on {plan.training_set.name}, seed {plan.seed}"
    write_text_atomically(path, page(title, sections))
    rank_zero_print(f"done: {path}")


def _needs(plan: Plan, took: Estimate, disk: int, free: int) -> Iterator[tuple[str, str]]:
    """(name, text) of time, memory and disk."""
    schedule, batch = plan.schedule, plan.batch
    step = took.batch_seconds * batch.accumulate
    batches = f"mean of {took.batches} batches" if took.batches > 1 else "one batch"
    speed = batch.batch_size / took.batch_seconds
    one = "; one process was measured, without its exchange with the others" if batch.processes > 1 else ""
    whole = duration(step * schedule.total_steps)
    yield "time", f"{whole} for {schedule.total_steps:,} steps, without evaluation"
    yield "step", f"{step:.3g} s ({batches}), {speed:,.0f} images/s of a process{one}"
    yield "waiting for data", f"{took.wait_fraction:.0%} of the time; the first batch came after {took.start:.1f} s"
    if took.device_bytes is not None:
        yield "device memory", f"{took.device_bytes / 2**30:.2f} GiB at the peak of a step"
    memory = f"{took.host_bytes / 2**30:.2f} GiB at the peak of this process, of {machine_memory() / 2**30:.1f} GiB"
    yield "host memory", f"{memory}; worker processes and features of an evaluation come on top"
    short = "" if disk < free else "; free some space, or keep fewer checkpoints"
    yield "disk", f"{disk / 2**30:.2f} GiB at most for the run folder, {free / 2**30:.1f} GiB are free{short}"


def _views(plan: Plan, method: Any, module: Any) -> Html:
    """Images, each beside its views in the first epoch, as the backbone gets them but with natural colours."""
    images, device = module.data.train, local_device(plan.hardware)
    rows = np.unique(np.linspace(0, len(images) - 1, IMAGES).astype(int)).tolist()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (module.data.mean, module.data.std))
    batches = [method.transform_batch(batch) for batch in module.augmented_loader(rows, device)]
    places = [(batch, i) for batch in batches for i in range(len(batch.index))]
    parts = []
    for row, (batch, i) in zip(rows, places, strict=True):
        label = int(images.labels[row])
        name = _name(images, row) + (f", class {_class_name(images, label)}" if label >= 0 else "")
        figures = [picture(_thumbnail(images.decode(row)), name, "own")]
        for number, view in enumerate(batch.views):
            # A method may have added rows, as RotNet does: every len(index)-th one is of the same image.
            own = view[i :: len(batch.index)].float().cpu() * std + mean
            figures += [picture(_pixels(one), f"view {number + 1}, {view.shape[-1]} px") for one in own]
        parts.append(element("div", *figures, css="pictures"))
    about = "Framed: the image as it is read. Beside it: its views in the first epoch, with natural colours."
    return Html(element("p", about, css="soft") + element("div", *parts, css="charts"))


def _data(module: Any) -> Html:
    """The report of the data with charts, and copies side by side."""
    report, parts = module.data_report(), []
    images = module.data.splits()
    for name, split in report.splits.items():
        title = {"train": "Training images", "val": "Validation images"}[name]
        parts += [element("h3", title), table(_facts(split)), element("div", *_charts(split), css="charts")]
        parts += _pairs(images[name], images[name], split.copies, "another image")
    if report.leaked is not None:
        parts.append(element("h3", "Validation images among the training images"))
        parts += _pairs(images["val"], images["train"], report.leaked, "a training image")
    return Html("".join(parts))


def _facts(split: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of a split."""
    yield "images", f"{split.images:,}, {split.labelled:,} with a label"
    if split.labelled:
        least, most = min(split.counts, key=split.counts.get), max(split.counts, key=split.counts.get)
        few, many = split.counts[least], split.counts[most]
        span = f"from {few:,} ({least}) to {many:,} images ({most})" if few < many else f"of {few:,} images each"
        yield "classes", f"{len(split.counts):,}, {span}"
    low, middle, high = np.quantile(split.sizes, [0, 0.5, 1], axis=0).round().astype(int).tolist()
    shapes = [f"{width} x {height}" for height, width in (low, middle, high)]
    span = f" (medians), {shapes[0]} (smallest) to {shapes[2]} (largest)" if low != high else ""
    yield "width x height", f"{shapes[1]} px{span}"
    ratio = split.sizes[:, 1] / split.sizes[:, 0]
    yield "aspect ratio", f"{np.median(ratio):.2f} (median), {ratio.min():.2f} to {ratio.max():.2f}"
    skipped = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in split.skipped.items())
    yield "skipped files", skipped or "none"
    yield "one colour", f"{split.one_colour:,} of {split.copies.images:,} images that were looked at"


def _charts(split: Any) -> Iterator[Html]:
    if len(split.counts) > 1:
        order = sorted(split.counts, key=split.counts.get, reverse=True)
        caption = "images of each class, from the largest to the smallest"
        yield bars([split.counts[name] for name in order], order, caption)
    for values, what, unit in (
        (split.sizes.min(axis=1), "short side", " px"),
        (split.sizes[:, 1] / split.sizes[:, 0], "aspect ratio, width over height", ""),
    ):
        if values.min() < values.max():
            counts, edges = np.histogram(values, BINS)
            labels = [f"{a:.4g} to {b:.4g}{unit}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
            yield bars(counts.tolist(), labels, f"images by {what}")


def _pairs(images: Any, others: Any, copies: Any, what: str) -> list[Html]:
    """A sentence about copies of `what`, and the first pairs of both kinds."""
    found = f"{len(copies.equal):,} equal to {what}, {len(copies.near):,} nearly equal"
    parts = [element("p", f"{found}; {copies.images:,} were compared with {copies.among:,}.")]
    shown = []
    for kind, pairs in (("equal", copies.equal), ("nearly equal", copies.near)):
        for row, other in pairs[:PAIRS]:
            both = ((images, row), (others, other))
            figures = [picture(_thumbnail(i.decode(at)), f"{kind}: {_name(i, at)}") for i, at in both]
            shown.append(element("div", *figures, css="pictures"))
    return [*parts, element("div", *shown, css="charts")]


def _name(images: Any, row: int) -> str:
    names = getattr(images, "names", None)
    return names[row] if names else f"image {row}"


def _class_name(images: Any, label: int) -> str:
    return images.classes[label] if images.classes else str(label)


def _thumbnail(image: Tensor) -> NDArray:
    """(3, H, W) uint8 -> (h, w, 3) uint8, at most THUMBNAIL pixels long."""
    scale = THUMBNAIL / max(image.shape[1:])
    if scale < 1:
        image = TF.resize(image, [max(1, round(side * scale)) for side in image.shape[1:]], antialias=True)
    pixels: NDArray = image.permute(1, 2, 0).numpy()
    return pixels


def _pixels(view: Tensor) -> NDArray:
    """(3, S, S) float in [0, 1] -> (S, S, 3) uint8."""
    pixels: NDArray = (255 * view.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    return pixels
