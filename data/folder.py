"""Image files in class folders, or in an unlabelled folder."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.encoded import PUT_BACK, EncodedImages, preview
from data.file_list import FileList, ImageFile
from data.scan import NO_FILES, entries, find_images, is_folder, is_image, is_unread, read_endings, unread_note
from utils.errors import UserError
from utils.names import escaped, shown

DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}")  # names such as 2019, 2019-07 and 20190731


class FolderImages(EncodedImages):
    """Image files below a folder, in sorted order, or in that of a table.

    unread: names of images below the root in formats that are not read. searched: whether the files were found in the
    folder, and not named by a table.
    """

    PER_IMAGE = ("lengths", "mtimes")
    ITEMS = "files"

    def __init__(
        self, root: Path, files: Sequence[ImageFile], labels: Sequence[int], classes: Sequence[str],
        unread: Sequence[str] = (), searched: bool = True,
    ):  # fmt: skip
        found = FileList.of(files)
        super().__init__(root, found.names, found.sizes, labels, classes)
        self.mtimes, self.unread, self.searched = found.mtimes, list(unread), searched
        self._warned = False

    def content(self, i: int) -> str:
        return self.path(i)

    def stamps(self) -> Iterator[str]:
        return map(str, self.mtimes.tolist())

    def check_unchanged(self, i: int) -> None:
        """Refuse a file of another length than when the folder was read.

        One that was written again at its old length is a warning, printed once: the pixels may be the same, as after
        `touch`, and a resumed run would accept them.
        """
        path, length = self.path(i), int(self.lengths[i])
        try:
            now = os.stat(path)
        except OSError:  # the decoder says why
            return
        if now.st_size != length:
            raise UserError(
                f"{shown(path)} changed while the run went on (from {length:,} to {now.st_size:,} bytes); {PUT_BACK}"
            )
        if now.st_mtime_ns != self.mtimes[i] and not self._warned:
            self._warned = True
            print(
                f"  warning: {shown(path)} was written again while the run went on, at its old length; if its pixels "
                f"changed, the run has no single training set: put it back as it was",
                flush=True,
            )


def read_folder(root: Path, classes: list[str] | None = None, unlabelled: bool = False) -> FolderImages:
    """Read the image files below `root`: labelled by their class folder, or -1 when images lie in `root` itself.

    classes: the class names of another split, to which the labels refer; by default the sorted sub-folders.
    With such classes, images in `root` itself are an error: no image would have a label. unlabelled: all labels are -1,
    wherever the images lie.
    """
    top = entries(root)
    loose = [] if unlabelled else sorted(entry.path for entry in top if is_image(entry))
    if loose and classes:
        raise UserError(
            f"images such as {shown(loose[0])} lie in the top of {shown(root)}, so no validation image has a label; "
            f"move them into class folders, or remove them"
        )
    if unlabelled or loose:
        files, unread = find_images(root, "")
        if not files:
            raise UserError(f"{shown(root)} has no images ({_read_formats(unread, root)}); name another folder")
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
    images.notes += _class_notes(images) if classes is None else []
    return images


def _class_notes(images: FolderImages) -> list[str]:
    """What a user may not expect of the classes: one for all images, and names that are dates."""
    root, notes = shown(images.root), []
    if len(images.classes) == 1:
        folder = shown(os.path.join(images.root, os.path.dirname(images.names[0]).split(os.sep)[0]))
        notes.append(
            f"{root} has one sub-folder, so all {len(images):,} images have one class; if its sub-folders "
            f"are the classes, or if the images have no labels, name {folder} instead"
        )
    if all(DATE.fullmatch(name) for name in images.classes):
        notes.append(
            f"the classes are the folders {preview(images.classes)} of {root}, which look like dates; if they are no "
            f"classes, pass --unlabelled"
        )
    return notes


def _read_classes(
    root: Path, folders: dict[str, str], classes: list[str], unread: list[str], complete: bool
) -> FolderImages:
    """The images of the class folders `classes` -> their names; complete: each class must have images."""
    files: list[FileList] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found, not_read = find_images(root, folders[name]) if name in folders else NO_FILES
        if not found and complete:
            folder = shown(os.path.join(root, folders[name]))
            raise UserError(f"class folder {folder} has no images ({_read_formats(not_read, root)}); fill or remove it")
        files.append(found)
        unread = unread + not_read
        labels += [label] * len(found)
    return FolderImages(root, FileList.concatenate(files), labels, classes, unread)


def _read_formats(unread: list[str], root: Path) -> str:
    return unread_note(unread, root) if unread else ", ".join(sorted(read_endings()))
