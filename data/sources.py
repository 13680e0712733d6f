"""Where the images of a split lie, and which reader a path asks for: a folder, a table, shards, arrays, a data set."""

from pathlib import Path
from typing import NamedTuple

from data import arrow
from data.arrays import read_array
from data.folder import read_folder
from data.images import Images
from data.scan import entries, read_endings
from data.shards import PACKED, read_shards
from data.tables import Columns, read_table
from utils.errors import UserError
from utils.files import typed_path
from utils.names import shown

TABLES = (".csv", ".tsv", ".parquet")
ARRAYS = (".npy", ".npz")
FILES = (*TABLES, *ARRAYS, ".tar")


class Place(NamedTuple):
    """Where images lie. split: a split inside of `path`. validation: without a split, the validation one is meant."""

    path: Path | str
    split: str | None = None
    validation: bool = False


def read_place(place: Place, columns: Columns, classes: list[str] | None = None) -> Images | None:
    """The images of a place; None where it has no validation images of its own.

    classes: the class names of the training images, to which the labels of validation images refer.
    """
    path = place.path
    if isinstance(path, str) or _is_data_set(path):
        return arrow.read_data_set(path, place.split, place.validation, columns, classes)
    ending = path.suffix.lower() if path.is_file() else ""
    if ending in TABLES:
        return read_table(path, columns, classes)
    if ending in ARRAYS:
        return read_array(path, place.split, place.validation, columns, classes)
    if ending == ".tar" or _holds(path, (".tar", *PACKED)):
        return read_shards(path, columns, classes)
    if columns.image or columns.label:
        flag = "--image_column" if columns.image else "--label_column"
        raise UserError(f"{flag} has no effect on {shown(path)}, whose images are not in a table; remove it")
    return read_folder(path, classes, columns.unlabelled)


def _is_data_set(path: Path) -> bool:
    """Whether a folder is a saved data set, or holds Parquet files, perhaps in its only sub-folder, data."""
    if not path.is_dir():
        return False
    if arrow.is_saved(path) or _holds(path, (".parquet",)):
        return True
    inner = path / "data"
    alone = inner.is_dir() and [entry.name for entry in entries(path) if entry.is_dir()] == ["data"]
    return alone and _holds(inner, (".parquet",))


def _holds(folder: Path, endings: tuple[str, ...]) -> bool:
    """Whether a folder has files with these endings, and neither images nor folders, which would come first."""
    found = False
    for entry in entries(folder):
        name = entry.name.lower()
        if entry.is_dir() or name.endswith(tuple(read_endings())):
            return False
        found = found or name.endswith(endings)
    return found


def find_places(
    name: str, folder: str, data_folder: str, train_dir: str | None, val_dir: str | None
) -> tuple[Place, Place | None]:
    """(training images, validation images or None): those of the flags, or else the default ones.

    folder: the data set's usual folder in --data_folder.
    """
    root = data_folder if data_folder.startswith(arrow.HUB) else typed_path(data_folder)
    if isinstance(root, str) or _has_splits(root):
        return Place(root, train_dir), Place(root, val_dir, validation=True)
    if root.is_file():
        if train_dir:
            raise UserError(f"--data_folder {shown(root)} is a file, so --train_dir has no effect; remove it")
        return Place(_readable(root)), Place(_existing(name, root.parent / val_dir)) if val_dir else None
    return _in_folder(name, folder, root, train_dir, val_dir)


def _in_folder(
    name: str, folder: str, root: Path, train_dir: str | None, val_dir: str | None
) -> tuple[Place, Place | None]:
    if not root.is_dir():
        images = "the images" if name == "custom" else name
        raise UserError(f"--data_folder {root} is not a folder; name the folder that holds {images}")
    base = root / folder if not train_dir and (root / folder).is_dir() else root
    found = typed_path(root / train_dir) if train_dir else _named(base, "train")
    if not found and name == "custom":
        found = root  # the folder itself holds the images
    train = found or base / "train"
    if not train.exists():
        given = "" if train_dir else "; name it with --train_dir, relative to --data_folder"
        raise UserError(f"no training images of {name}: {train} is not a folder{given}")
    if val_dir:
        return Place(_readable(train)), Place(_existing(name, root / val_dir))
    val = _named(base, "val") or _named(base, "test") if not train_dir and train != root else None
    return Place(_readable(train)), Place(val) if val else None


def _named(folder: Path, stem: str) -> Path | None:
    """The sub-folder `stem`, or else the file of that name that can be read."""
    places = [folder / stem, *(folder / f"{stem}{ending}" for ending in FILES)]
    return next((path for path in places if path.is_dir() or (path.suffix and path.is_file())), None)


def _existing(name: str, path: Path) -> Path:
    if not typed_path(path).exists():
        raise UserError(f"no validation images of {name}: --val_dir {path} is not a folder")
    return _readable(path)


def _readable(path: Path) -> Path:
    if path.is_file() and path.suffix.lower() not in FILES:
        raise UserError(f"{shown(path)} is no file of images that is read; name a folder, or one of {', '.join(FILES)}")
    return path


def _has_splits(path: Path) -> bool:
    """Whether a path holds several splits by itself."""
    return _is_data_set(path) or (path.is_file() and path.suffix.lower() == ".npz")
