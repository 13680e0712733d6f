"""Find files that are not images or are truncated, without decoding all of them."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from data.images import DAMAGED, REPAIR, open_image, pixels_of, reason
from utils.errors import UserError
from utils.names import shown

# The last bytes of a complete file. Pillow opens no truncated WebP; the end of other formats tells nothing.
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82", "WEBP": b""}
BLOCK = 64  # files per task of a thread
NOT_THE_FILE = {errno.EIO, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, *REPAIR}


class Header(NamedTuple):
    """Facts about an image. deep: whether its channels have 16 bits."""

    height: int
    width: int
    deep: bool


class Checked(NamedTuple):
    """N image files. sizes: (N, 2) heights and widths, 0 x 0 of a bad one; bad: position -> reason, in order; deep: the
    positions of images of 16 bits."""

    sizes: NDArray[np.int64]
    bad: dict[int, str]
    deep: list[int]


def inspect(source: str | BinaryIO) -> Header:
    """The header of an image file, by name or open; raises one of DAMAGED when header or pixels cannot be read.

    A truncated file keeps its header but not its end. A file that does not end as its format does is decoded, and the
    decoder decides: bytes after a complete image do no harm.
    """
    with open(source, "rb") if isinstance(source, str) else source as file, open_image(file) as image:
        header, end = Header(image.height, image.width, _is_deep(image)), ENDS.get(image.format or "")
        if end:
            file.seek(-len(end), os.SEEK_END)
        whole = end is not None and file.read(len(end)) == end
        if not whole:
            file.seek(0)
            pixels_of(source if isinstance(source, str) else file.read())
    return header


def _is_deep(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has channels of 16 bits: as gray, or in a layout such as "RGB;16B"."""
    if image.format == "BMP":  # its "BGR;16" is 16 bits for all three channels
        return False
    first = next(iter(getattr(image, "tile", ())), "")
    return image.mode.startswith("I") or ";16" in str(first)


def check_files(path: Callable[[int], str], n: int, opened: Callable[[int], str | BinaryIO] | None = None) -> Checked:
    """Read the headers of n image files.

    path: file name of image i, or what messages call it. opened: image i where it is no file of its own. An error of
    the disk or of the network says nothing about an image and ends the check:
    the error might pass, and another process or a resumed run would see other images.
    """
    sizes, bad = np.zeros((n, 2), dtype=np.int64), {}
    deep: list[int] = []

    def check(i: int) -> None:
        try:
            header = inspect((opened or path)(i))
            sizes[i] = header[:2]
            if header.deep:
                deep.append(i)
        except DAMAGED as e:
            if isinstance(e, OSError) and e.errno in NOT_THE_FILE:
                remedy = REPAIR.get(e.errno, "try again")
                raise UserError(f"{shown(path(i))} cannot be read ({reason(e)}); {remedy}, or remove the file") from e
            bad[i] = reason(e)

    def check_block(rows: range) -> int:
        for i in rows:
            check(i)
        return len(rows)

    blocks = [range(at, min(at + BLOCK, n)) for at in range(0, n, BLOCK)]
    quiet = True if n < 20_000 else None  # None: where the output is not a terminal
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=n, desc="checking", disable=quiet) as bar:
        for done in pool.map(check_block, blocks):
            bar.update(done)
    return Checked(sizes, dict(sorted(bad.items())), sorted(deep))
