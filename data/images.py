"""Images with labels, in a fixed order: in memory, or decoded on demand."""

import errno
import functools
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor

from data.file_list import RowNames
from utils.errors import UserError
from utils.names import shown


class Images(Protocol):
    """N images; labels: (N,) int64, -1 where unknown; classes: their names, empty where there are none."""

    labels: Tensor
    classes: list[str]

    @property
    def names(self) -> Sequence[str]:
        """The name of each image: a path below the root, a member of an archive, or a row number."""

    def __len__(self) -> int: ...

    def decode(self, i: int) -> Tensor:
        """Image i as (3, H, W) uint8."""

    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths; an unreadable image is an error."""

    def fingerprint(self) -> str:
        """A short hash that changes with the images, their labels and their order."""

    def state(self) -> str:
        """A `fingerprint` that also changes when a file was written again at its old length."""


class ArrayImages:
    """Images of one size that are already in memory: pixels (N, 3, H, W) uint8, labels (N,)."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        self.pixels, self.labels = pixels, labels
        self.classes: list[str] = []

    @property
    def names(self) -> Sequence[str]:
        return RowNames(range(len(self)))

    def __len__(self) -> int:
        return len(self.pixels)

    def decode(self, i: int) -> Tensor:
        return self.pixels[i]

    def sizes(self) -> np.ndarray:
        return np.tile(np.array(self.pixels.shape[2:]), (len(self), 1))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()[:16]

    def state(self) -> str:
        return self.fingerprint()


# Pillow would also open formats that start another program (EPS starts Ghostscript), whatever a file is called.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # MPO is opened as JPEG
CONVERT = "convert it to JPEG or PNG"
HEIF = "pip install -r requirements-heif.txt"
FOREIGN = (  # position of some bytes, the bytes, and what is said of a file with them that cannot be opened
    (0, b"%!PS", f"it is a PostScript file, which is not read; {CONVERT}"),
    (4, b"ftyp", f"it is a HEIC or AVIF file, which is damaged or not read here; {HEIF}, or {CONVERT}"),
    *((0, mark, "it is a TIFF file that is damaged or has other channels than one or three of 8 or 16 bits; keep these")
      for mark in (b"II*\0", b"MM\0*")),
)  # fmt: skip
MAX_PIXELS = 89_478_485  # a quarter of a GiB of RGB; above it Pillow warns, and refuses twice as many
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
TOO_LARGE = f"it has more than {MAX_PIXELS:,} pixels; make it smaller"
# The errors that Pillow raises for a file that is not an image, or is damaged; its AVIF decoder raises RuntimeError.
DAMAGED = (
    OSError, SyntaxError, ValueError, ArithmeticError, EOFError, LookupError, TypeError, RuntimeError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip
REPAIR = {errno.ENOENT: "put it back", errno.EACCES: "allow reading it", errno.EPERM: "allow reading it"}

# What Pillow says about odd files that it can read is nothing that a user has to act on.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """FORMATS, AVIF where Pillow was built with it, and HEIF (.heic) where pillow-heif is installed."""
    avif = ("AVIF",) if features.check("avif") else ()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS + avif
    register_heif_opener()
    return (*FORMATS, *avif, "HEIF")


def open_image(source: str | BinaryIO) -> Image.Image:
    """Open an image of one of FORMATS and at most MAX_PIXELS; its pixels are not decoded yet.

    Of an animation only the first frame is ever decoded.
    """
    try:
        image = Image.open(source, formats=readable_formats())
    except UnidentifiedImageError:
        if what := _foreign(source):
            raise ValueError(what) from None
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Image.DecompressionBombError(TOO_LARGE) from None
    # The first is more where somebody has switched the warning off.
    if max(image.width * image.height, _tile_pixels(image)) > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError(TOO_LARGE)
    return image


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of one tile of a TIFF file, 0 without tiles: its decoder takes memory for a whole one, however large."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))


def _foreign(source: str | BinaryIO) -> str:
    """Why a file that cannot be opened is refused and what to do, from FOREIGN by its first bytes; '' where unknown."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            return _foreign(file)
    source.seek(0)
    start = source.read(16)
    return next((what for at, mark, what in FOREIGN if start[at:].startswith(mark)), "")


def decode_file(source: str | bytes, name: str = "") -> Tensor:
    """An image file, or its bytes, as (3, H, W) uint8; one that cannot be decoded is an error that says what to do.

    name: what the error calls it; by default its path.
    """
    try:
        return pixels_of(source)
    except DAMAGED as e:
        remedy = REPAIR.get(getattr(e, "errno", None) or 0, "repair or remove it")
        raise UserError(
            f"{shown(name or str(source))} is not a readable image ({reason(e)}); {remedy}; a run that it stopped can "
            f"only be resumed with the file as it was"
        ) from e


def pixels_of(source: str | bytes) -> Tensor:
    """A file or its bytes as (3, H, W) uint8: gray is repeated, CMYK and palettes converted, transparency dropped.

    Deviation from Pillow's convert("RGB"), which clips 16-bit grays at 255: they are scaled to 8 bits.
    """
    jpeg = source.startswith(b"\xff\xd8") if isinstance(source, bytes) else source.lower().endswith((".jpg", ".jpeg"))
    if jpeg:
        pixels = _decode_jpeg(source)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(source)


def reason(e: Exception) -> str:
    """The reason why an image could not be read, on one line."""
    if isinstance(e, UnidentifiedImageError):
        return "cannot identify it"
    return " ".join(str(getattr(e, "strerror", None) or e).split()) or type(e).__name__


def _decode_jpeg(source: str | bytes) -> Tensor | None:
    """A gray or colour JPEG decoded by simplejpeg: Pillow's pixels in 0.7 of its time, without Python's lock.

    None for every other file, and for a damaged one: Pillow then decides whether it is an image.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        height, width, colors, _ = decode_jpeg_header(data)
        if colors not in ("Gray", "YCbCr"):  # other colour spaces are converted in several ways
            return None
        if height * width > MAX_PIXELS:
            return None
        pixels = decode_jpeg(data, "RGB")
    except (OSError, ValueError):
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_with_pillow(source: str | bytes) -> Tensor:
    with open_image(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
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
