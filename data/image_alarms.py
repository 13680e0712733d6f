"""What is wrong with images before training: of one colour, all alike, or validation images among the training images.

Images are compared by their decoded pixels: equal ones by a hash, near ones by the correlation of gray thumbnails. Of
large data sets a sample is compared, for SECONDS at most.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.images import ArrayImages, Images
from utils.errors import UserError
from utils.names import shown

SECONDS = 5.0  # for both splits; the validation images get a third of it
VALIDATION = 1000  # images at most: all of them among the training images are found with a sample, a few are not
BLOCK = 512  # images that are summarized before the clock is read
SIDE = 16  # pixels of a thumbnail
# A JPEG of quality 75 or an upscaled copy correlates by more than 0.99 (500 of 500 images of CIFAR-10); 0.98 would
# also find 7 of 359 digits that two people wrote alike.
NEAR = 0.99
FLAT = 2.0  # gray levels; the thumbnail of an image with a smaller standard deviation says nothing
MOST = 0.005  # share of duplicates from which they are said: fewer change an accuracy by half a point at most
ONE_COLOUR = 0.1  # share of images of one colour from which they are said
ALIKE = 0.5  # share of different images under which a data set is said to repeat itself


@dataclass
class ImageBlock:
    """Some images, summarized.

    rows: their positions. digests: hashes of their pixels. thumbnails: (N, SIDE^2) unit rows, zero where flat.
    one_colour: (N,) whether all pixels of an image are equal.
    """

    rows: list[int]
    digests: list[bytes]
    thumbnails: Tensor
    one_colour: Tensor


def image_alarms(train: Images, val: Images | None, seconds: float = SECONDS) -> dict[str, str]:
    """Name of an alarm -> what was found, in one sentence; empty for images that are fine."""
    start = time.monotonic()
    known = list(read_blocks(val, _sample_rows(len(val), VALIDATION), start + seconds / 3)) if val is not None else []
    where: dict[bytes, list[int]] = {}
    for block in known:
        for digest, row in zip(block.digests, block.rows, strict=True):
            where.setdefault(digest, []).append(row)
    val_rows = [row for block in known for row in block.rows]
    thumbnails = torch.cat([block.thumbnails for block in known]) if known else torch.zeros(0, SIDE * SIDE)
    exact: dict[int, int] = {}  # validation row -> training row
    near: dict[int, int] = {}
    seen, one_colour, digests = 0, [], set()
    for block in read_blocks(train, _sample_rows(len(train), len(train)), start + seconds):
        seen += len(block.rows)
        digests.update(block.digests)
        one_colour += [row for row, flat in zip(block.rows, block.one_colour.tolist(), strict=True) if flat]
        exact |= {v: row for d, row in zip(block.digests, block.rows, strict=True) for v in where.get(d, [])}
        best, at = (thumbnails @ block.thumbnails.T).max(dim=1) if val_rows else (torch.zeros(0), torch.zeros(0))
        near |= {val_rows[i]: block.rows[int(at[i])] for i in torch.nonzero(best > NEAR).flatten().tolist()}
    near = {row: other for row, other in near.items() if row not in exact}
    out = {}
    if seen and len(one_colour) >= ONE_COLOUR * seen:
        names = _names(train, one_colour)
        out["images of one colour"] = (
            f"{len(one_colour):,} of {seen:,} training images have one colour ({names}); look at them: are they what "
            f"they should be?"
        )
    if seen > 1 and len(digests) <= ALIKE * seen:
        out["identical images"] = f"{len(digests):,} of {seen:,} training images are different; is it the right folder?"
    if val is not None and exact | near and len(exact | near) >= MOST * len(val_rows):
        out["validation images among the training images"] = (
            f"of {len(val_rows):,} validation images, {len(exact):,} are equal and {len(near):,} nearly equal to one "
            f"of {seen:,} training images ({_pairs(train, val, exact | near)}); remove them from one of both: an "
            f"accuracy on them says nothing about new images"
        )
    return out


def _sample_rows(n: int, most: int) -> list[int]:
    """At most `most` of n positions, in an order whose every beginning is spread over all of them."""
    rows: list[int] = np.random.default_rng(0).permutation(n)[:most].tolist()
    return rows


def read_blocks(images: Images, rows: list[int], end: float) -> Iterator[ImageBlock]:
    """Summaries of images, a block at a time and in the order of `rows`, until the clock says `end`."""

    def summary(row: int) -> ImageBlock | None:
        """Summarize one image where it is decoded: a block of decoded photographs would be many gigabytes."""
        try:
            return _summarize([row], images.decode(row)[None]) if time.monotonic() < end else None
        except UserError:  # an unreadable file is said by those who need it
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(rows), BLOCK):
            part = rows[first : first + BLOCK]
            if isinstance(images, ArrayImages):
                yield _summarize(part, images.pixels[part])
            elif found := [block for block in pool.map(summary, part) if block is not None]:
                yield _joined(found)
            if time.monotonic() > end:
                return


def _joined(blocks: list[ImageBlock]) -> ImageBlock:
    return ImageBlock(
        [row for block in blocks for row in block.rows],
        [digest for block in blocks for digest in block.digests],
        torch.cat([block.thumbnails for block in blocks]),
        torch.cat([block.one_colour for block in blocks]),
    )


def _summarize(rows: list[int], pixels: Tensor) -> ImageBlock:
    """Hashes, thumbnails and colours of images; pixels: (N, 3, H, W) uint8."""
    gray = F.adaptive_avg_pool2d(pixels.float().mean(dim=1, keepdim=True), SIDE).flatten(1)
    gray = gray - gray.mean(dim=1, keepdim=True)
    contrast = gray.square().mean(dim=1, keepdim=True).sqrt()
    flat = pixels.flatten(2)
    return ImageBlock(
        rows,
        [_digest(image) for image in pixels.numpy()],
        F.normalize(gray, dim=1) * (contrast > FLAT),
        (flat.amax(dim=2) == flat.amin(dim=2)).all(dim=1),
    )


def _digest(image: NDArray) -> bytes:
    return hashlib.blake2b(str(image.shape).encode() + image.tobytes(), digest_size=16).digest()


def image_name(images: Images, row: int) -> str:
    path = getattr(images, "path", None)
    return shown(path(row)) if path else f"image {row}"


def _names(images: Images, rows: list[int]) -> str:
    return ", ".join(image_name(images, row) for row in sorted(rows)[:3])


def _pairs(train: Images, val: Images, found: dict[int, int]) -> str:
    """Up to three validation images with the training images that they equal."""
    return ", ".join(
        f"{image_name(val, row)} is {image_name(train, other)}" for row, other in sorted(found.items())[:3]
    )
