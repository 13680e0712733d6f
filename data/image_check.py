"""Which files are no images or are cut off, found without decoding them all."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.images import DAMAGED, pixels_of, reason
from utils.errors import UserError

# How a complete file ends. Pillow opens no WebP that was cut off; the other formats tell nothing by their end.
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82", "WEBP": b""}
BLOCK = 64  # files per task of a thread
NOT_THE_FILE = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ESTALE, errno.ETIMEDOUT}


def inspect(path: str) -> tuple[int, int]:
    """(height, width) of an image file; one of DAMAGED where its header, its end or else its pixels cannot be read.

    A file that was cut off keeps its header but not its end: one that does not end as its format does is decoded, and
    the decoder decides, so that what follows a complete image does no harm.
    """
    with open(path, "rb") as file, Image.open(file) as image:
        size, end = (image.height, image.width), ENDS.get(image.format or "")
        if end:
            file.seek(-len(end), os.SEEK_END)
        whole = end is not None and file.read(len(end)) == end
    if not whole:
        pixels_of(path)
    return size


def check_files(path: Callable[[int], str], n: int) -> tuple[np.ndarray, dict[int, str]]:
    """(N, 2) heights and widths, and for each bad file (0 x 0) why, in order.

    An error of the disk or of the network says nothing about an image and ends the check: it might pass, and another
    process or a resumed run would see other images.
    """
    sizes, bad = np.zeros((n, 2), dtype=np.int64), {}

    def look(i: int) -> None:
        try:
            sizes[i] = inspect(path(i))
        except DAMAGED as e:
            if isinstance(e, OSError) and e.errno in NOT_THE_FILE:
                raise UserError(f"{path(i)} cannot be read ({reason(e)}); try again, or remove it") from e
            bad[i] = reason(e)

    def look_at(rows: range) -> int:
        for i in rows:
            look(i)
        return len(rows)

    blocks = [range(at, min(at + BLOCK, n)) for at in range(0, n, BLOCK)]
    quiet = True if n < 20_000 else None  # None: where nobody is watching
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=n, desc="checking", disable=quiet) as bar:
        for done in pool.map(look_at, blocks):
            bar.update(done)
    return sizes, dict(sorted(bad.items()))
