"""Image files in class folders, or in an unlabelled folder."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.image_check import check_files
from data.images import decode_file
from data.scan import ENDINGS, ImageFile, entries, find_images, is_folder, is_image, is_unread, unread_note
from utils.errors import UserError
from utils.names import escaped, shown

PUT_BACK = "put it back as it was and resume the run, or start a new one"
CHECKED = 200_000  # files; with --on_bad_image stop, the files of a larger folder are not checked before the run


class FolderImages:
    """Image files in sorted order; an implementation of `data.images.Images`.

    unread: names of images below the root in formats that are not read.
    """

    def __init__(
        self, root: Path, files: list[ImageFile], labels: list[int], classes: list[str], unread: Sequence[str] = ()
    ):
        self.root, self.names, self.classes, self.unread = root, [file.name for file in files], classes, list(unread)
        self._files = files
        self.labels: Tensor = torch.tensor(labels, dtype=torch.long)
        self._sizes: np.ndarray | None = None
        self._warned = False

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return escaped(self.names[i])

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def decode(self, i: int) -> Tensor:
        image = decode_file(self.path(i))
        if self._sizes is not None and tuple(image.shape[1:]) != tuple(self._sizes[i]):
            (height, width), now = self._sizes[i], image.shape
            raise UserError(
                f"{shown(self.path(i))} changed while the run went on (from {width} x {height} pixels to {now[2]} x "
                f"{now[1]}); {PUT_BACK}"
            )
        self.check_unchanged(i)
        return image

    def check_unchanged(self, i: int) -> None:
        """Refuse a file of another length than when the folder was read.

        One that was written again at its old length is a warning, printed once: the pixels may be the same, as after
        `touch`, and a resumed run would accept them.
        """
        path, file = self.path(i), self._files[i]
        try:
            now = os.stat(path)
        except OSError:  # the decoder says why
            return
        if now.st_size != file.size:
            raise UserError(
                f"{shown(path)} changed while the run went on (from {file.size:,} to {now.st_size:,} bytes); {PUT_BACK}"
            )
        if now.st_mtime_ns != file.mtime_ns and not self._warned:
            self._warned = True
            print(
                f"  warning: {shown(path)} was written again while the run went on, at its old length; if its pixels "
                f"changed, the run has no single training set: put it back as it was",
                flush=True,
            )

    def fingerprint(self) -> str:
        rows = zip(self._files, self.labels.tolist(), strict=True)
        return _hash(f"{file.name} {file.size} {y}" for file, y in rows)

    def state(self) -> str:
        return _hash([self.fingerprint(), *(str(file.mtime_ns) for file in self._files)])

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
            self._refuse([i for i, file in enumerate(self._files) if file.size == 0])

    def readable(self) -> tuple["FolderImages", dict[str, str]]:
        """The images without the bad files, after a check of every file; and path -> reason of the bad ones."""
        sizes, bad = check_files(self.path, len(self))
        kept = [i for i in range(len(self)) if i not in bad]
        self._refuse_empty_classes(kept)
        files = [self._files[i] for i in kept]
        images = FolderImages(self.root, files, self.labels[kept].tolist(), self.classes, self.unread)
        images._sizes = sizes[kept]
        return images, {escaped(self.path(i)): why if self._files[i].size else "zero bytes" for i, why in bad.items()}

    def _refuse(self, bad: Iterable[int]) -> None:
        if names := [self.names[i] for i in bad]:
            raise UserError(
                f"{len(names)} of {len(self)} files in {shown(self.root)} are not readable images ({preview(names)}); "
                f"repair or remove them, or pass --on_bad_image skip"
            )

    def _refuse_empty_classes(self, kept: list[int]) -> None:
        """Refuse when the files that are left out are all files of a class."""
        if not kept:
            raise UserError(
                f"none of the {len(self)} files in {shown(self.root)} is a readable image ({preview(self.names)}); "
                f"repair them, or name another folder"
            )
        if lost := sorted(set(self.labels.tolist()) - set(self.labels[kept].tolist())):
            names = preview([self.classes[label] for label in lost])
            raise UserError(
                f"no file of {names} in {shown(self.root)} is a readable image; repair some, or remove the class"
            )


def read_folder(root: Path, classes: list[str] | None = None) -> FolderImages:
    """Read the image files below `root`: labelled by their class folder, or -1 when images lie in `root` itself.

    classes: the class names of another split, to which the labels refer; by default the sorted sub-folders.
    """
    top = entries(root)
    if any(is_image(entry) for entry in top):
        files, unread = find_images(root, "")
        return FolderImages(root, files, [-1] * len(files), [], unread)
    folders = {escaped(entry.name): entry.name for entry in top if is_folder(entry)}
    if classes is not None and (unknown_classes := sorted(set(folders) - set(classes))):
        raise UserError(
            f"{shown(root)} has classes that the training folder lacks ({preview(unknown_classes)}); "
            f"remove or rename them"
        )
    unread = [entry.name for entry in top if is_unread(entry)]
    images = _read_classes(root, folders, sorted(folders) if classes is None else classes, unread, classes is None)
    if not images.names:
        raise UserError(f"{shown(root)} has no images and no class folders with images ({_read_formats(unread, root)})")
    return images


def _read_classes(
    root: Path, folders: dict[str, str], classes: list[str], unread: list[str], complete: bool
) -> FolderImages:
    """The images of the class folders `classes` -> their names; complete: each class must have images."""
    files: list[ImageFile] = []
    labels = []
    for label, name in enumerate(classes):
        found, not_read = find_images(root, folders[name]) if name in folders else ([], [])
        if not found and complete:
            folder = shown(os.path.join(root, folders[name]))
            raise UserError(f"class folder {folder} has no images ({_read_formats(not_read, root)}); fill or remove it")
        files += found
        unread = unread + not_read
        labels += [label] * len(found)
    return FolderImages(root, files, labels, list(classes), unread)


def _read_formats(unread: list[str], root: Path) -> str:
    return unread_note(unread, root) if unread else ", ".join(sorted(ENDINGS))


def _hash(lines: Iterable[str]) -> str:
    """16 digits; names that are not UTF-8 count with their bytes."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def preview(names: list[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
