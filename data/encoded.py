"""Encoded images (JPEG, PNG, ...) that are read by their position: what all their sources share."""

import copy
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.file_list import Names, RowNames
from data.image_check import Checked, check_files
from data.images import decode_file
from data.labels import LabelSets
from utils.errors import UserError
from utils.names import escaped, shown

PUT_BACK = "put it back as it was and resume the run, or start a new one"
CHECKED = 200_000  # images; with --on_bad_image stop, the images of a larger source are not checked before the run
HEADERS = 2000  # images of a larger source whose headers are read
HASHED = 2**14  # lines at once
Source = TypeVar("Source", bound="EncodedImages")


class EncodedImages:
    """Encoded images in a fixed order; an implementation of `data.images.Images`.

    A source says with `content` how one is read; worker processes and threads call it at once. names: of the images: a
    path below the root, a member of a shard, or the number of a row. root: the folder or file that messages name.
    lengths: (N,) bytes of each image. label_sets: where images have several labels; then `labels` are -1, and there are
    no `classes`. deep: how many images of 16 bits the check has found, among how many images. PER_IMAGE: attributes
    with an entry per image.
    """

    PER_IMAGE: tuple[str, ...] = ("lengths",)
    ITEMS = "images"  # what messages call them
    label_sets: LabelSets | None = None

    def __init__(
        self, root: Path | str, names: Names | RowNames, lengths: NDArray, labels: Sequence[int], classes: Sequence[str]
    ):
        self.root, self.names, self.lengths, self.classes = root, names, lengths, list(classes)
        self.labels: Tensor = torch.tensor(labels, dtype=torch.long)
        self.notes: list[str] = []  # what a user may not expect of these images
        self.deep = 0, 0
        self._some_headers: Checked | None = None
        self._sizes: NDArray | None = None
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self.names)

    def content(self, i: int) -> str | bytes:
        """The bytes of image i, or the name of a file that holds nothing else."""
        raise NotImplementedError

    def opened(self, i: int) -> str | BinaryIO:
        """Image i to look at its header and its end: a file object, or a file name."""
        content = self.content(i)
        return io.BytesIO(content) if isinstance(content, bytes) else content

    def stamps(self) -> Iterator[str]:
        """When the files behind the images were written, as text."""
        raise NotImplementedError

    def path(self, i: int) -> str:
        """What messages call image i."""
        return os.path.join(self.root, self.names[i])

    def decode(self, i: int) -> Tensor:
        image = decode_file(self.content(i), self.path(i))
        if self._sizes is not None and tuple(image.shape[1:]) != tuple(self._sizes[i]):
            (height, width), now = self._sizes[i], image.shape
            raise UserError(
                f"{shown(self.path(i))} changed while the run went on (from {width} x {height} pixels to {now[2]} x "
                f"{now[1]}); {PUT_BACK}"
            )
        self.check_unchanged(i)
        return image

    def check_unchanged(self, i: int) -> None:
        """Refuse image i when what holds it is not what it was when the run started."""

    def fingerprint(self) -> str:
        if not self._fingerprint:
            sets = self.label_sets
            labels = self.labels.tolist() if sets is None else np.packbits(sets.member.numpy(), axis=1).tolist()
            rows = zip(self.names, self.lengths.tolist(), labels, strict=True)
            self._fingerprint = short_hash(f"{name} {length} {y}" for name, length, y in rows)
        return self._fingerprint

    def state(self) -> str:
        return short_hash([self.fingerprint(), *self.stamps()])

    def sizes(self) -> NDArray:
        """(N, 2) heights and widths from the images' headers; read once."""
        if self._sizes is None:
            found = check_files(self.path, len(self), self.opened)
            self._refuse(found.bad)
            self._sizes, self.deep = found.sizes, (len(found.deep), len(self))
        return self._sizes

    def check(self) -> None:
        """Refuse bad images, with their number; in a very large source only images of zero bytes are looked for."""
        if len(self) <= CHECKED:
            self.sizes()
        else:
            self._refuse(np.flatnonzero(self.lengths == 0).tolist())
            self.deep = len(self.some_headers().deep), HEADERS

    def some_headers(self) -> Checked:
        """The headers of HEADERS images of a very large source, spread over all of them; read once."""
        if self._some_headers is None:
            rows = np.linspace(0, len(self) - 1, HEADERS).astype(int).tolist()
            self._some_headers = check_files(lambda i: self.path(rows[i]), HEADERS, lambda i: self.opened(rows[i]))
        return self._some_headers

    def readable(self: Source) -> tuple[Source, dict[str, str]]:
        """The images without the bad ones, after a check of every one; and path -> reason of the bad ones."""
        sizes, bad, deep = check_files(self.path, len(self), self.opened)
        kept = np.setdiff1d(np.arange(len(self)), list(bad))
        self._refuse_empty_classes(kept)
        images = self._take(kept)
        images._sizes, images.deep = sizes[kept], (len(deep), len(kept))
        return images, {escaped(self.path(i)): why if self.lengths[i] else "zero bytes" for i, why in bad.items()}

    def _take(self: Source, rows: NDArray) -> Source:
        """The images of some rows."""
        images = copy.copy(self)
        images.names, images.labels, images._fingerprint = self.names.take(rows), self.labels[rows], ""
        images.label_sets, images._some_headers = self.label_sets and self.label_sets.take(rows), None
        for name in self.PER_IMAGE:
            setattr(images, name, getattr(self, name)[rows])
        return images

    def _refuse(self, bad: Iterable[int]) -> None:
        if names := [self.names[i] for i in bad]:
            raise UserError(
                f"{len(names)} of {len(self)} {self.ITEMS} in {shown(self.root)} are not readable images "
                f"({preview(names)}); repair or remove them, or pass --on_bad_image skip"
            )

    def _refuse_empty_classes(self, kept: NDArray) -> None:
        """Refuse when the images that are left out are all images of a class."""
        if not len(kept):
            raise UserError(
                f"none of the {len(self)} {self.ITEMS} in {shown(self.root)} is a readable image "
                f"({preview(self.names)}); repair them, or name another folder"
            )
        if lost := sorted(set(self.labels.tolist()) - set(self.labels[kept].tolist()) - {-1}):
            names = preview([self.classes[label] for label in lost])
            raise UserError(
                f"no file of {names} in {shown(self.root)} is a readable image; repair some, or remove the class"
            )


def short_hash(lines: Iterable[str]) -> str:
    """16 digits; names that are not UTF-8 count with their bytes."""
    digest, rest, separator = hashlib.sha256(), iter(lines), ""
    while part := list(itertools.islice(rest, HASHED)):  # a million lines at once take 140 MB
        digest.update((separator + "\n".join(part)).encode("utf-8", "surrogateescape"))
        separator = "\n"
    return digest.hexdigest()[:16]


def preview(names: Sequence[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
