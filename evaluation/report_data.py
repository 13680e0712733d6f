"""Data of the pictures for a run's report: JSON files with small images in one WebP, beside the PNG files."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from evaluation.image_names import display_name
from evaluation.interfaces import Data, Images
from utils.batch import Batch
from utils.files import write_json

CELL_SIDE = 96  # pixels, at most, of an image in a grid
POINT_SIDE = 32  # pixels, at most, of an image of a point
VIEWED = 6  # images whose views are shown
MOST_VIEWS = 12  # views of an image that are shown
QUALITY = 80  # of WebP


class Cell(NamedTuple):
    """An image of a grid: pixels (H, W, 3) uint8; its name and class, and whether it is of the class of its row."""

    pixels: NDArray
    name: str = ""
    label: str = ""
    matches: bool | None = None


@dataclass(frozen=True)
class Grid:
    """Rows of images: a label before each row, titles above columns by their number, and a note below."""

    rows: list[list[Cell]]
    labels: Sequence[str] = ()
    titles: dict[int, str] = field(default_factory=dict)
    note: str = ""


def cell(images: Images, i: int, label: str | None = None, matches: bool | None = None) -> Cell:
    """Image i with its name and class; label: a class by which to replace it."""
    own = class_name(images, int(images.labels[i]))
    return Cell(pixels_of(images, i), display_name(images, i), own if label is None else label, matches)


def pixels_of(images: Images, i: int) -> NDArray:
    """Image i as (H, W, 3) uint8."""
    return images.decode(i).permute(1, 2, 0).numpy()


def class_name(images: Images, label: int) -> str:
    """The name of a class; its number where classes have no names, nothing for an unknown label."""
    if label < 0:
        return ""
    return images.classes[label] if images.classes else str(label)


def write_grid(path: Path, grid: Grid) -> None:
    """Write a grid for the report."""
    cells = [one for row in grid.rows for one in row]
    text = [[{"name": c.name, "label": c.label, "matches": c.matches} for c in row] for row in grid.rows]
    content = {"kind": "grid", "labels": list(grid.labels), "titles": grid.titles, "note": grid.note, "rows": text}
    write_json(path, content | sheet([c.pixels for c in cells], CELL_SIDE))


def write_points(
    path: Path, flat: NDArray, labels: Tensor, images: Images, rows: Sequence[int], classes: Sequence[str], title: str
) -> None:
    """Write points of a plane for the report: flat (N, 2) and labels (N,) of the images `rows`.

    classes: their names, or none. title: of the projection.
    """
    low, high = flat.min(axis=0), flat.max(axis=0)
    scaled = np.round((flat - low) / np.maximum(high - low, 1e-12), 4)  # (N, 2) in [0, 1]
    content = {
        "kind": "points",
        "title": title,
        "x": scaled[:, 0].tolist(),
        "y": scaled[:, 1].tolist(),
        "label": labels.tolist(),
        "classes": list(classes),
        "name": [display_name(images, i) for i in rows],
    }
    write_json(path, content | sheet([pixels_of(images, i) for i in rows], POINT_SIDE))


def views_grid(batch: Batch, data: Data, step: int) -> Grid:
    """The first images of a training batch beside their normalized views (VIEWED, 3, H, W) in it."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    views = [255 * (view.float().cpu() * std + mean).clamp(0, 1) for view in batch.views]
    shown = [view.round().byte().permute(0, 2, 3, 1).numpy() for view in views]
    rows = [
        [cell(data.train, i), *(Cell(view[n], f"view {v + 1}") for v, view in enumerate(shown))]
        for n, i in enumerate(batch.index.tolist())
    ]
    titles = {0: "image"} | {v + 1: f"view {v + 1}" for v in range(len(shown))}
    return Grid(rows, [row[0].label for row in rows], titles, f"the first images of the batch of step {step}")


def first_images(batch: Batch) -> Batch:
    """A copy of the first images of a batch, on its device; nothing here waits for it."""
    views = [view[:VIEWED].detach().clone() for view in batch.views[:MOST_VIEWS]]
    return Batch(batch.index[:VIEWED].clone(), views, batch.labels[:VIEWED].clone())


def sheet(images: Sequence[NDArray], side: int) -> dict[str, Any]:
    """Images as the squares of one WebP, row by row, with the number of its columns.

    Each image (H, W, 3) is cut to its central square, which is made smaller to `side` pixels where it is larger.
    """
    side = max(1, min(side, max(min(image.shape[:2]) for image in images)))
    columns = int(np.ceil(np.sqrt(len(images))))
    lines = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * side, lines * side))
    for n, image in enumerate(images):
        smaller = min(image.shape[:2]) > side
        how = Image.Resampling.BILINEAR if smaller else Image.Resampling.NEAREST
        square = ImageOps.fit(Image.fromarray(np.ascontiguousarray(image)), (side, side), how)
        whole.paste(square, (n % columns * side, n // columns * side))
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", quality=QUALITY, method=2)
    text = base64.b64encode(buffer.getvalue()).decode()
    return {"side": side, "columns": columns, "lines": lines, "sheet": f"data:image/webp;base64,{text}"}
