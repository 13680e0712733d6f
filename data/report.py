"""What the images of a data set are like: counts, balance, sizes, files that are not read, copies of each other.

Copies are found as in `data.image_alarms`: equal images by a hash of their pixels, near ones by the correlation of gray
thumbnails. Of large data sets a sample is compared.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.datasets import Data
from data.encoded import CHECKED, EncodedImages
from data.folder import FolderImages
from data.image_alarms import MOST, NEAR, image_name, read_blocks
from data.images import Images
from data.scan import read_endings
from utils.names import escaped
from utils.plan import ViewsConfig

AT_START, SECONDS_AT_START = 1000, 1.0  # images and seconds of the look at each start, for each split
MOST_IMAGES, SECONDS = 10_000, 30.0  # the same of a whole report
UNBALANCED = 10  # times the images of the smallest class from which the largest one is said
ENLARGED, SHRUNK = 0.9, 8  # short side over side of a view below and above which it is said
CHUNK = 1024  # images that are compared with all others at once


@dataclass(frozen=True)
class Sample:
    """Images that were looked at: their rows, hashes, (N, D) unit thumbnails (zero where flat), those of one colour."""

    rows: list[int]
    digests: list[bytes]
    thumbnails: Tensor
    one_colour: list[int]


@dataclass(frozen=True)
class Copies:
    """Pairs (row, row of the image that it equals), and how many images were compared with how many."""

    equal: list[tuple[int, int]]
    near: list[tuple[int, int]]
    images: int
    among: int


@dataclass(frozen=True)
class SplitReport:
    """One split. counts: name of a class -> images. sizes: (M, 2) heights and widths. skipped: ending -> files."""

    images: int
    labelled: int
    counts: dict[str, int]
    sizes: NDArray
    skipped: dict[str, int]
    one_colour: int
    copies: Copies


@dataclass(frozen=True)
class DataReport:
    """Reports of the splits by their names, and the validation images that are also training images."""

    splits: dict[str, SplitReport]
    leaked: Copies | None


def data_report(data: Data, most: int = MOST_IMAGES, seconds: float = SECONDS) -> DataReport:
    """Look at `most` images of each split, for so many seconds each at most."""
    splits, samples = {}, {}
    for name, images in data.splits().items():
        sample = samples[name] = _look(images, most, time.monotonic() + seconds)
        labels = images.labels[images.labels >= 0]
        splits[name] = SplitReport(
            len(images), len(labels), _class_counts(labels, data), _sizes(images), _skipped(images),
            len(sample.one_colour), _copies(sample, sample),
        )  # fmt: skip
    leaked = _copies(samples["val"], samples["train"]) if "val" in samples else None
    return DataReport(splits, leaked)


def image_notes(data: Data, views: ViewsConfig) -> list[str]:
    """Remarks on the training images, from a look of a second at most."""
    images = data.train
    counts, skipped = _class_counts(images.labels[images.labels >= 0], data), _skipped(images)
    notes = view_size_notes(_sizes(images), views)
    if counts and max(counts.values()) >= UNBALANCED * min(counts.values()):
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        notes.append(f"classes are unbalanced: {counts[most]:,} images of {most}, {counts[least]:,} of {least}")
    if skipped:
        notes.append(f"files beside the images are skipped: {_endings(skipped)}")
    sample = _look(images, AT_START, time.monotonic() + SECONDS_AT_START)
    found = _copies(sample, sample)
    if len(found.equal) + len(found.near) > MOST * found.images:
        row, other = (found.equal or found.near)[0]
        notes.append(
            f"of {found.images:,} training images, {len(found.equal):,} are equal and {len(found.near):,} nearly equal "
            f"to another one ({image_name(images, row)} is {image_name(images, other)})"
        )
    return notes


def view_size_notes(sizes: NDArray, views: ViewsConfig) -> list[str]:
    """Remarks where views are much larger or smaller than images; sizes: (N, 2)."""
    side, large = float(np.median(sizes.min(axis=1))), views.large_size
    if side < ENLARGED * large:
        # Recipes of 8-pixel digits and 28-pixel letters enlarge on purpose, since a ResNet halves 32 five times.
        return [f"views of {large} px enlarge the images, whose short side is {side:g} px"] if large > 32 else []
    if side > SHRUNK * large:
        return [
            f"views of {large} px shrink the images, whose short side is {side:g} px; a copy of the images of "
            f"{2 * large} px would be decoded several times as fast"
        ]
    return []


def _class_counts(labels: Tensor, data: Data) -> dict[str, int]:
    names = data.train.classes or [str(label) for label in range(data.classes)]
    return dict(zip(names, torch.bincount(labels, minlength=len(names)).tolist(), strict=True))


def _sizes(images: Images) -> NDArray:
    """Heights and widths (M, 2), of some files of a very large folder."""
    if not isinstance(images, EncodedImages) or len(images) <= CHECKED:
        return images.sizes()
    found = images.some_headers()
    return np.delete(found.sizes, list(found.bad), axis=0)


def _skipped(images: Images) -> dict[str, int]:
    """Number of files that are no images, by their endings; of a table or a very large folder nothing."""
    if not isinstance(images, FolderImages) or not images.searched or len(images) > CHECKED:
        return {}
    found: Counter[str] = Counter()
    for _, folders, files in os.walk(images.root, followlinks=True):  # a link without an end was refused before
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.update(os.path.splitext(name)[1].lower() for name in files if not name.startswith("."))
    skipped = {ending: count for ending, count in found.items() if ending not in read_endings()}
    return dict(sorted(skipped.items(), key=lambda e: (-e[1], e[0])))


def _endings(skipped: dict[str, int]) -> str:
    shown = [f"{count:,} {escaped(ending) or 'without ending'}" for ending, count in skipped.items()]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} other endings" if len(shown) > 5 else "")


def _look(images: Images, most: int, end: float) -> Sample:
    blocks = list(read_blocks(images, _sample_rows(len(images), most), end))
    rows = [row for block in blocks for row in block.rows]
    flat = [bool(flat) for block in blocks for flat in block.one_colour]
    return Sample(
        rows,
        [digest for block in blocks for digest in block.digests],
        torch.cat([block.thumbnails for block in blocks]) if blocks else torch.zeros(0, 1),
        [row for row, is_flat in zip(rows, flat, strict=True) if is_flat],
    )


def _sample_rows(n: int, most: int) -> list[int]:
    """All rows, or `most` of them: random ones, each with the next row, since copies often lie side by side."""
    rng = np.random.default_rng(0)
    if n <= most:
        order: list[int] = rng.permutation(n).tolist()
        return order
    first = rng.permutation(n - 1)[: most // 2]
    return list(dict.fromkeys(np.stack([first, first + 1], axis=1).flatten().tolist()))


def _copies(images: Sample, among: Sample) -> Copies:
    """For each image another one that it equals, or nearly; of one and the same sample, an earlier one of it."""
    if not images.rows or not among.rows:  # a disk so slow that nothing was read in time
        return Copies([], [], len(images.rows), len(among.rows))
    same = images is among
    places: dict[bytes, int] = {}  # the first with each hash
    for place, digest in enumerate(among.digests):
        places.setdefault(digest, place)
    equal, near = [], []
    for start in range(0, len(images.rows), CHUNK):
        similar = images.thumbnails[start : start + CHUNK] @ among.thumbnails.T
        similar = similar.tril(diagonal=start - 1) if same else similar  # line i is image start + i
        best, nearest = similar.max(dim=1)
        for i, row in enumerate(images.rows[start : start + CHUNK], start):
            known = places.get(images.digests[i])
            if known is not None and not (same and known == i):
                equal.append((row, among.rows[known]))
            elif best[i - start] > NEAR:
                near.append((row, among.rows[int(nearest[i - start])]))
    return Copies(sorted(equal), sorted(near), len(images.rows), len(among.rows))
