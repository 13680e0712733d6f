"""Image files in class folders, or in an unlabelled folder."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.image_check import check_files
from data.images import decode_file
from utils.errors import UserError

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CHECKED = 200_000  # files; with --on_bad_image stop, the files of a larger folder are not checked before the run


class FolderImages:
    """Image files in sorted order; an implementation of `data.images.Images`."""

    def __init__(self, root: Path, files: list[tuple[str, int]], labels: list[int], classes: list[str]):
        self.root, self.names, self.classes = root, [name for name, _ in files], classes
        self._bytes = [size for _, size in files]
        self.labels: Tensor = torch.tensor(labels, dtype=torch.long)
        self._sizes: np.ndarray | None = None

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
        """(N, 2) heights and widths from the files' headers; read once."""
        if self._sizes is None:
            sizes, bad = check_files(self.path, len(self))
            self._refuse(bad)
            self._sizes = sizes
        return self._sizes

    def check(self) -> None:
        """Refuse bad files, with their number; in a very large folder only files of zero bytes are looked for."""
        if len(self) <= CHECKED:
            self.sizes()
        else:
            self._refuse([i for i, size in enumerate(self._bytes) if size == 0])

    def readable(self) -> tuple["FolderImages", dict[str, str]]:
        """The images without the bad files, after a check of every file; and path -> reason of the bad ones."""
        sizes, bad = check_files(self.path, len(self))
        kept = [i for i in range(len(self)) if i not in bad]
        self._refuse_empty_classes(kept)
        files = [(self.names[i], self._bytes[i]) for i in kept]
        images = FolderImages(self.root, files, self.labels[kept].tolist(), self.classes)
        images._sizes = sizes[kept]
        return images, {self.path(i): why if self._bytes[i] else "zero bytes" for i, why in bad.items()}

    def _refuse(self, bad: Iterable[int]) -> None:
        if names := [self.names[i] for i in bad]:
            raise UserError(
                f"{len(names)} of {len(self)} files in {self.root} are not readable images ({preview(names)}); "
                f"repair or remove them, or pass --on_bad_image skip"
            )

    def _refuse_empty_classes(self, kept: list[int]) -> None:
        """Refuse when the files that are left out are all files of a class."""
        if not kept:
            raise UserError(
                f"none of the {len(self)} files in {self.root} is a readable image ({preview(self.names)}); "
                f"repair them, or name another folder"
            )
        if lost := sorted(set(self.labels.tolist()) - set(self.labels[kept].tolist())):
            names = preview([self.classes[label] for label in lost])
            raise UserError(f"no file of {names} in {self.root} is a readable image; repair some, or remove the class")


def read_folder(root: Path, classes: list[str] | None = None) -> FolderImages:
    """Read the image files below `root`: labelled by their class folder, or -1 when images lie in `root` itself.

    classes: the class names of another split, to which the labels refer; by default the sorted sub-folders.
    """
    entries = [e for e in os.scandir(root) if not e.name.startswith(".")]
    folders = sorted(e.name for e in entries if e.is_dir())
    if any(_is_image(e) for e in entries):
        unlabelled = _image_files(root, "")
        return FolderImages(root, unlabelled, [-1] * len(unlabelled), [])
    if classes is not None and (unknown_classes := sorted(set(folders) - set(classes))):
        raise UserError(
            f"{root} has classes that the training folder lacks ({preview(unknown_classes)}); remove or rename them"
        )
    names = classes if classes is not None else folders
    files: list[tuple[str, int]] = []
    labels = []
    for label, name in enumerate(names):
        found = _image_files(root, name) if name in folders else []
        if not found and classes is None:
            raise UserError(
                f"class folder {root / name} has no images ({', '.join(sorted(ENDINGS))}); fill or remove it"
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{root} has no images and no class folders with images ({', '.join(sorted(ENDINGS))})")
    return FolderImages(root, files, labels, list(names))


def _is_image(entry: "os.DirEntry[str]") -> bool:
    return entry.is_file() and os.path.splitext(entry.name)[1].lower() in ENDINGS


def _image_files(root: Path, name: str) -> list[tuple[str, int]]:
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


def preview(names: list[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
