"""A folder of images: one folder per class, or just a pile."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data.images import decode_file
from utils.errors import UserError

T = TypeVar("T")
CHECKED = 200_000  # files whose headers are read before the pipelines that decode at every step start
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class FolderImages:
    """Image files in sorted order; see `data.images.Images`."""

    def __init__(self, root: Path, files: list[tuple[str, int]], labels: list[int], classes: list[str]):
        self.root, self.names, self.classes = root, [name for name, _ in files], classes
        self._bytes = [size for _, size in files]
        self.labels: Tensor = torch.tensor(labels, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def decode(self, i: int) -> Tensor:
        return decode_file(self.path(i))

    def fingerprint(self) -> str:
        rows = zip(self.names, self._bytes, self.labels.tolist(), strict=True)
        return hashlib.sha256("\n".join(f"{n} {b} {y}" for n, b, y in rows).encode()).hexdigest()[:16]

    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths from the files' headers; names the first few files that are no images."""
        return np.array(self.headers(range(len(self)), lambda image: (image.height, image.width)), dtype=np.int64)

    def headers(self, rows: Iterable[int], about: Callable[[Image.Image], T]) -> list[T]:
        """What `about` says of the images `rows` as Pillow opens them, before it decodes any."""

        def look(i: int) -> T | None:
            try:
                with Image.open(self.path(i)) as image:
                    return about(image)
            except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):
                return None

        rows = list(rows)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(look, rows))
        bad = [self.names[i] for i, header in zip(rows, found, strict=True) if header is None]
        if bad:
            raise UserError(
                f"{len(bad)} of {len(self)} files in {self.root} are not readable images ({_some(bad)}); "
                f"repair them or take them out"
            )
        return cast(list[T], found)


def read_folder(root: Path, classes: list[str] | None = None) -> FolderImages:
    """The images below `root`: labelled by its sub-folders, or -1 when the images lie in `root` itself.

    classes: the names that labels refer to, as another split has them; by default the sorted sub-folders.
    """
    here = [e for e in os.scandir(root) if not e.name.startswith(".")]
    folders = sorted(e.name for e in here if e.is_dir())
    if any(_is_image(e) for e in here):
        pile = _checked(root, _below(root, ""))
        return FolderImages(root, pile, [-1] * len(pile), [])
    if classes is not None and (strange := sorted(set(folders) - set(classes))):
        raise UserError(f"{root} has classes that the training folder lacks ({_some(strange)}); remove or rename them")
    names = classes if classes is not None else folders
    files: list[tuple[str, int]] = []
    labels = []
    for label, name in enumerate(names):
        found = _below(root, name) if name in folders else []
        if not found and classes is None:
            raise UserError(
                f"class folder {root / name} has no images ({', '.join(sorted(ENDINGS))}); fill or remove it"
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{root} has no images and no class folders with images ({', '.join(sorted(ENDINGS))})")
    return FolderImages(root, _checked(root, files), labels, list(names))


def _is_image(entry: os.DirEntry) -> bool:
    return entry.is_file() and os.path.splitext(entry.name)[1].lower() in ENDINGS


def _below(root: Path, name: str) -> list[tuple[str, int]]:
    """(path relative to root, bytes) of every image file below root/name, sorted."""
    found = []
    stack = [os.path.join(root, name)]
    while stack:
        for entry in os.scandir(stack.pop()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                stack.append(entry.path)
            elif _is_image(entry):
                found.append((os.path.relpath(entry.path, root), entry.stat().st_size))
    return sorted(found)


def _checked(root: Path, files: list[tuple[str, int]]) -> list[tuple[str, int]]:
    empty = [name for name, size in files if size == 0]
    if empty:
        raise UserError(f"{len(empty)} image files in {root} have zero bytes ({_some(empty)}); repair or remove them")
    return files


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
