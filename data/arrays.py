"""Images in NumPy files: .npy, mapped into memory, and .npz, with their labels beside or inside of them."""

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.encoded import short_hash
from data.file_list import RowNames
from data.images import ArrayImages, Images, reason
from data.labels import UNLABELLED, class_positions
from data.tables import Columns
from utils.errors import UserError
from utils.names import shown

SAMPLED = 256  # images whose pixels count in the fingerprint of a mapped file
SHAPES = "(N, H, W), (N, H, W, 3) or (N, 3, H, W), also with 1 in place of 3"
IMAGES = ("images", "x", "data")  # names of arrays in an .npz file, alone or with the split before or behind
LABELS = ("labels", "y", "label", "targets")
SPLITS = {False: ("train",), True: ("val", "valid", "validation", "test")}


class MappedImages:
    """Images of one size in an .npy file that is mapped into memory; an implementation of `data.images.Images`.

    A process that gets a copy maps the file by itself.
    """

    def __init__(self, path: Path, labels: list[int], classes: list[str]):
        self.root, self.classes = path, classes
        self.labels: Tensor = torch.tensor(labels, dtype=torch.long)
        self._array: NDArray | None = _map(path)
        self._shape = self._array.shape
        self._last = channels_last(self._shape, shown(path))
        self._stat = os.stat(path)
        self._fingerprint = ""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_array": None}

    @property
    def names(self) -> RowNames:
        return RowNames(range(len(self)))

    def __len__(self) -> int:
        return self._shape[0]

    def path(self, i: int) -> str:
        """What messages call image i."""
        return f"row {i} of {self.root}"

    def decode(self, i: int) -> Tensor:
        if self._array is None:
            self._array = _map(self.root)
        return to_rgb(torch.from_numpy(np.array(self._array[i : i + 1])), self._last)[0]

    def sizes(self) -> NDArray:
        height, width = self._shape[1:3] if self._last else self._shape[2:4]
        return np.tile(np.array([height, width]), (len(self), 1))

    def fingerprint(self) -> str:
        """A hash of the shape, the labels and the pixels of SAMPLED images that are spread over the file."""
        if not self._fingerprint:
            rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int)).tolist()
            pixels = hashlib.sha256(b"".join(self.decode(i).numpy().tobytes() for i in rows)).hexdigest()
            self._fingerprint = short_hash([str(self._shape), pixels, str(self.labels.tolist())])
        return self._fingerprint

    def state(self) -> str:
        return short_hash([self.fingerprint(), str(self._stat.st_mtime_ns)])


def read_array(
    path: Path, split: str | None, validation: bool, columns: Columns, classes: list[str] | None
) -> Images | None:
    """The images of an .npy or .npz file; None where an .npz has no validation images.

    split: beginning or end of the names of its arrays in an .npz file; by default that of the training images.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path, split, validation, columns, classes)
    if columns.image or columns.label:
        flag = "--image_column" if columns.image else "--label_column"
        raise UserError(f"{flag} has no effect on {shown(path)}, which is one array; remove it")
    beside = path.name.replace("images", "labels") if "images" in path.name else f"{path.stem}_labels.npy"
    labels_path = path.with_name(beside)
    labels = _map(labels_path, labels=True) if labels_path.is_file() and not columns.unlabelled else None
    found = _labels(labels, len(_map(path)), shown(labels_path), classes)
    return MappedImages(path, *found)


def _read_npz(
    path: Path, split: str | None, validation: bool, columns: Columns, classes: list[str] | None
) -> Images | None:
    where = shown(path)
    if validation and columns.image:
        if split:
            raise UserError(f"--image_column names the one array of {where} that is read; remove --val_dir")
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            image = columns.image or _name(file.files, split, validation, IMAGES)
            if image is None and validation and split is None:
                return None
            if image not in file.files:
                raise UserError(
                    f"{where} has no array {image or 'of images'}; it has {', '.join(map(shown, file.files))}: name "
                    f"one with --image_column"
                )
            label = None if columns.unlabelled else columns.label or _name(file.files, split, validation, LABELS)
            if label is not None and label not in file.files:
                raise UserError(f"{where} has no array {label}; it has {', '.join(map(shown, file.files))}")
            pixels, labels = file[image], file[label] if label else None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as e:
        raise (
            e
            if isinstance(e, UserError)
            else UserError(f"{where} cannot be read as arrays ({reason(e)}); write it again, without objects")
        ) from e
    where = f"{where}, array {shown(str(image))}"
    _check(pixels, where)
    found = _labels(labels, len(pixels), f"{where}, array {label}", classes)
    rgb = to_rgb(torch.from_numpy(pixels), channels_last(pixels.shape, where)).contiguous()
    images = ArrayImages(rgb, torch.tensor(found[0]))
    images.classes = found[1]
    return images


def _name(names: list[str], split: str | None, validation: bool, usual: tuple[str, ...]) -> str | None:
    """The array of a split: train_images, images_train, x_train; without splits: images, x."""
    splits = (split,) if split else SPLITS[validation]
    full = [name for s in splits for u in usual for name in (f"{s}_{u}", f"{u}_{s}")]
    alone = list(usual) if not validation and not split else []
    return next((name for name in (*full, *alone) if name in names), None)


def _map(path: Path, labels: bool = False) -> NDArray:
    """The array of an .npy file; pixels are mapped and must be uint8."""
    try:
        array: NDArray = np.load(path, mmap_mode=None if labels else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{shown(path)} cannot be read as an array ({reason(e)}); write it again") from e
    if not labels:
        _check(array, shown(path))
    return array


def _check(array: NDArray, where: str) -> None:
    if array.dtype != np.uint8:
        raise UserError(f"{where} has numbers of type {array.dtype}; convert its pixels to uint8, 0 to 255")
    channels_last(array.shape, where)


def channels_last(shape: tuple[int, ...], where: str) -> bool:
    """Whether the channels come last, or there are none; other numbers of channels than 1 and 3 are an error."""
    if 0 not in shape and (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        return True
    if 0 not in shape and len(shape) == 4 and shape[1] in (1, 3):
        return False
    raise UserError(f"{where} has the shape {shape}; images have {SHAPES}: choose or merge its channels")


def to_rgb(pixels: Tensor, last: bool) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) uint8 -> (N, 3, H, W); gray is repeated."""
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif last:
        pixels = pixels.permute(0, 3, 1, 2)
    return pixels.expand(-1, 3, -1, -1)


def _labels(array: NDArray | None, n: int, where: str, classes: list[str] | None) -> tuple[list[int], list[str]]:
    """Labels and class names; array: (N,) or (N, 1), None without labels."""
    if array is None:
        return [UNLABELLED] * n, []
    if array.shape not in ((n,), (n, 1)):
        raise UserError(
            f"{where} has the shape {array.shape}; {n:,} images have ({n},) labels, one each: correct it, or pass "
            f"--unlabelled"
        )
    return class_positions(array.reshape(-1).tolist(), where, classes)
