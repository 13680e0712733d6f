"""Search a folder for image files; what cannot be searched ends in an error of one line."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

from data.file_list import FileList, ImageFile
from data.images import HEIF, readable_formats, reason
from utils.errors import UserError
from utils.names import shown

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
ENDINGS_OF = {"AVIF": {".avif"}, "HEIF": {".heic", ".heif"}}  # formats that are read where a library is present
Entry = os.DirEntry  # of text
Place = frozenset[tuple[int, int]]  # device and number of a folder and of those that hold it


class Found(NamedTuple):
    """The image files below a folder, and the paths of images in formats that are not read; both sorted."""

    files: FileList
    unread: list[str]


NO_FILES = Found(FileList.of([]), [])


@functools.cache
def read_endings() -> set[str]:
    """The endings of images that are read."""
    return ENDINGS.union(*(endings for name, endings in ENDINGS_OF.items() if name in readable_formats()))


@functools.cache
def unread_endings() -> set[str]:
    """The endings of images that are not read here."""
    return set().union(*ENDINGS_OF.values()) - read_endings()


def entries(folder: str | Path) -> list["Entry[str]"]:
    """The entries of a folder whose names do not begin with a dot."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as e:
        raise UserError(f"folder {shown(folder)} cannot be read ({reason(e)}); allow reading it, or remove it") from e


def is_folder(entry: "Entry[str]") -> bool:
    """Whether an entry is a folder or a link to one; a link to itself, or to what does not exist, is an error."""
    try:
        folder = entry.is_dir()
        dangling = not folder and entry.is_symlink() and not os.path.exists(entry.path)
    except OSError as e:
        raise UserError(f"{shown(entry.path)} cannot be read ({reason(e)}); remove it") from e
    if dangling:  # whatever its name is, it may be an image or a whole class that is missing
        raise UserError(
            f"{shown(entry.path)} is a link to {shown(os.readlink(entry.path))}, which does not exist; put that back, "
            f"or remove the link"
        )
    return folder


def is_image(entry: "Entry[str]") -> bool:
    """Whether an entry is a file with the ending of an image that is read."""
    return _ending(entry) in read_endings() and not is_folder(entry) and entry.is_file()


def is_unread(entry: "Entry[str]") -> bool:
    """Whether an entry is a file with the ending of an image that is not read here, and that a note names."""
    return _ending(entry) in unread_endings() and not is_folder(entry) and entry.is_file()


def find_images(root: Path, name: str) -> Found:
    """Search root/name and all folders below it."""
    files, unread = [], []
    read, not_read = read_endings(), unread_endings()
    start = _holders(root) if name else _holders(root.resolve().parent)
    stack = [(os.path.join(root, name), f"{name}/" if name else "", start)]
    while stack:
        folder, prefix, holders = stack.pop()
        place = _enter(folder, holders)
        for entry in entries(folder):
            ending = _ending(entry)
            if is_folder(entry):
                stack.append((entry.path, f"{prefix}{entry.name}/", place))
            elif ending in read and entry.is_file():
                files.append(_describe(entry, prefix + entry.name))
            elif ending in not_read and entry.is_file():
                unread.append(prefix + entry.name)
    return Found(FileList.of(sorted(files)), sorted(unread))


def unread_note(unread: list[str], root: Path) -> str:
    """The words about images that are not read."""
    endings = ", ".join(sorted({os.path.splitext(name)[1].lower() for name in unread}))
    first = shown(os.path.join(root, unread[0]))
    return f"{len(unread):,} {endings} files are not read here (the first is {first}); {HEIF}, or convert them to JPEG"


def _ending(entry: "Entry[str]") -> str:
    name = entry.name  # it does not begin with a dot
    at = name.rfind(".")
    return name[at:].lower() if at > 0 else ""


def _describe(entry: "Entry[str]", path: str) -> ImageFile:
    try:
        facts = entry.stat()
    except OSError as e:
        raise UserError(
            f"{shown(entry.path)} cannot be read ({reason(e)}); do not change a folder while a run starts"
        ) from e
    return ImageFile(path, facts.st_size, facts.st_mtime_ns)


def _key(folder: str | Path) -> tuple[int, int]:
    try:
        facts = os.stat(folder)
    except OSError as e:
        raise UserError(f"folder {shown(folder)} cannot be read ({reason(e)}); allow reading it, or remove it") from e
    return facts.st_dev, facts.st_ino


def _holders(folder: Path) -> Place:
    """The folder and all folders that hold it."""
    real = folder.resolve()
    return frozenset(_key(path) for path in (real, *real.parents))


def _enter(folder: str, holders: Place) -> Place:
    """The holders of what is in a folder; a folder that is one of its own holders has no end."""
    key = _key(folder)
    if key in holders:
        raise UserError(f"{shown(folder)} is a link to a folder that holds it, so there is no end to it; remove it")
    return holders | {key}
