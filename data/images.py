"""Images with labels, in a fixed order: in memory, or decoded from files on demand."""

import hashlib
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor

from utils.errors import UserError


class Images(Protocol):
    """N images; labels: (N,) int64, -1 where unknown; classes: their names, empty where there are none."""

    labels: Tensor
    classes: list[str]

    def __len__(self) -> int: ...

    def decode(self, i: int) -> Tensor:
        """Image i as (3, H, W) uint8."""

    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths; an unreadable image is an error."""

    def fingerprint(self) -> str:
        """A short hash that changes with the images, their labels and their order."""


class ArrayImages:
    """Images of one size that are already in memory: pixels (N, 3, H, W) uint8, labels (N,)."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        self.pixels, self.labels = pixels, labels
        self.classes: list[str] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def decode(self, i: int) -> Tensor:
        return self.pixels[i]

    def sizes(self) -> np.ndarray:
        return np.tile(np.array(self.pixels.shape[2:]), (len(self), 1))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()[:16]


# The errors that Pillow raises for a file that is not an image, or is damaged.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_file(path: str) -> Tensor:
    """An image file as (3, H, W) uint8; a file that cannot be decoded is an error that says what to do."""
    try:
        return pixels_of(path)
    except DAMAGED as e:
        raise UserError(
            f"{path} is not a readable image ({reason(e)}); repair or remove it; a run that it stopped can only be "
            f"resumed with the file as it was"
        ) from e


def pixels_of(path: str) -> Tensor:
    """An image file as (3, H, W) uint8: gray is repeated, CMYK and palettes converted, transparency dropped.

    Deviation from Pillow's convert("RGB"), which clips 16-bit grays at 255: they are scaled to 8 bits.
    """
    if path.lower().endswith((".jpg", ".jpeg")):
        pixels = _decode_jpeg(path)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(path)


def reason(e: Exception) -> str:
    """The reason why an image could not be read, on one line."""
    if isinstance(e, UnidentifiedImageError):
        return "cannot identify it"
    return " ".join(str(getattr(e, "strerror", None) or e).split())


def _decode_jpeg(path: str) -> Tensor | None:
    """A gray or colour JPEG decoded by simplejpeg: Pillow's pixels in 0.7 of its time, without Python's lock.

    None for every other file, and for a damaged one: Pillow then decides whether it is an image.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        if decode_jpeg_header(data)[2] not in ("Gray", "YCbCr"):  # other colour spaces are converted in several ways
            return None
        pixels = decode_jpeg(data, "RGB")
    except (OSError, ValueError):
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_with_pillow(path: str) -> Tensor:
    with Image.open(path) as file:
        image: Image.Image = file
        if image.mode.startswith("I"):
            image = Image.fromarray(_to_8_bit(np.asarray(image)))
        elif image.mode == "F":
            raise ValueError(
                "its pixels are floating-point numbers without a known range; convert the file to 8 or 16 bits"
            )
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 65535) / 257).astype(np.uint8)
