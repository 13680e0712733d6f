"""Tables of image files and labels (CSV, TSV, Parquet), and how the columns of any table are found."""

import contextlib
import csv
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data import arrow
from data.encoded import EncodedImages, preview
from data.file_list import FileList, Names
from data.folder import FolderImages
from data.images import reason
from data.labels import Labels, read_labels
from utils.errors import UserError, did_you_mean
from utils.names import shown

IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")

FILES_PER_TASK = 1000  # of a thread that looks at files
ABSENT = -1  # length of a file that does not exist


class Columns(NamedTuple):
    """Which columns a user named for images and labels, and whether labels are to be left out."""

    image: str | None = None
    label: str | None = None
    unlabelled: bool = False

    def find_image(self, columns: Sequence[str], where: str, likely: Sequence[str] = ()) -> str:
        """The column of images: the named one, or the only `likely` one, or the only one with a usual name."""
        found = _find(columns, self.image, likely, IMAGE_COLUMNS, where, "image")
        if found is None:
            raise UserError(
                f"{where} has no column of images that can be recognized among {_listed(columns)}; name it with "
                f"--image_column"
            )
        return found

    def find_label(self, columns: Sequence[str], where: str, likely: Sequence[str] = ()) -> str | None:
        """The column of labels, found in the same way; None without one, or where labels are to be left out."""
        return None if self.unlabelled else _find(columns, self.label, likely, LABEL_COLUMNS, where, "label")


def _find(
    columns: Sequence[str], named: str | None, likely: Sequence[str], usual: Sequence[str], where: str, what: str
) -> str | None:
    if named is not None:
        if named not in columns:
            raise UserError(f"{where} has no column {named}{did_you_mean(named, columns)}; it has {_listed(columns)}")
        return named
    found = list(likely) or [column for column in columns if column.strip().lower() in usual]
    if len(found) > 1:
        raise UserError(f"{where} has several columns of {what}s: {_listed(found)}; name one with --{what}_column")
    return found[0] if found else None


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(shown(column) for column in columns[:12]) + (", ..." if len(columns) > 12 else "")


def no_label_note(columns: Sequence[str], where: str) -> str:
    """The words about a table in which no column of labels was recognized."""
    return f"no column of labels was recognized in {where} ({_listed(columns)}); name it with --label_column"


def read_table(path: Path, columns: Columns, classes: list[str] | None) -> EncodedImages:
    """The images of a table of paths, relative to its folder, in the order of its rows; Parquet may hold images."""
    where = shown(path)
    if path.suffix.lower() == ".parquet":
        holds_bytes = arrow.parquet_columns(path)
        names = list(holds_bytes)
        image = columns.find_image(names, where, [name for name in names if holds_bytes[name]])
        if holds_bytes[image]:
            held = arrow.read_data_set(path, None, False, columns, classes)
            assert held is not None, "only a validation split may be absent"
            return held
    else:
        names = _header(path)
        image = columns.find_image(names, where)
    label = columns.find_label(names, where)
    read = arrow.parquet_values if path.suffix.lower() == ".parquet" else _csv_values
    paths, *labels = read(path, [image, label] if label else [image])
    found = Labels.none(len(paths))
    if label:
        found = read_labels(labels[0], f"{where}, column {shown(label)}", classes)
    images = FolderImages(path.parent, _files(path, paths), found.positions, found.classes, searched=False)
    images.label_sets = found.sets
    if not label and not columns.unlabelled and len(names) > 1:
        images.notes.append(no_label_note(names, where))
    return images


def _header(path: Path) -> list[str]:
    for row in _rows(path):
        return row
    raise UserError(f"{shown(path)} is empty; it needs a header with the names of its columns, and a row per image")


def _csv_values(path: Path, columns: Sequence[str]) -> list[list[str]]:
    rows = _rows(path)
    header = next(iter(rows))
    at = [header.index(column) for column in columns]
    values: list[list[str]] = [[] for _ in columns]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise UserError(
                f"row {number} of {shown(path)} has {len(row)} cells, its header {len(header)}; correct the row (quote "
                f"cells with commas)"
            )
        for column, k in zip(values, at, strict=True):
            column.append(row[k])
    return values


def _rows(path: Path) -> Iterable[list[str]]:
    """The rows that are not empty, one after the other."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from filter(None, csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, ValueError, csv.Error) as e:
        raise UserError(f"{shown(path)} cannot be read as a table ({reason(e)}); save it as CSV in UTF-8") from e


def _files(table: Path, paths: Sequence[Any]) -> FileList:
    """The files that a table names, with their lengths and times; each must exist, and be named once."""
    where = shown(table)
    if not paths:
        raise UserError(f"{where} has no rows; it needs one per image")
    first: dict[str, int] = {}
    for row, path in enumerate(paths, start=1):
        if not isinstance(path, str) or not path.strip():
            raise UserError(f"row {row} of {where} names no file ({shown(str(path))}); add one, or remove the row")
        if (earlier := first.setdefault(os.path.normpath(path), row)) != row:
            raise UserError(f"rows {earlier} and {row} of {where} name one file, {shown(path)}; remove one of them")

    facts = np.full((len(paths), 2), ABSENT, dtype=np.int64)

    def describe(first: int) -> None:
        for row in range(first, min(first + FILES_PER_TASK, len(paths))):
            with contextlib.suppress(OSError, ValueError):
                found = os.stat(os.path.join(table.parent, paths[row]))
                facts[row] = found.st_size, found.st_mtime_ns

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(describe, range(0, len(paths), FILES_PER_TASK)))
    if missing := [paths[row] for row in np.flatnonzero(facts[:, 0] == ABSENT)]:
        raise UserError(
            f"{len(missing):,} of {len(paths):,} files that {where} names cannot be found ({preview(missing)}); paths "
            f"are relative to {shown(table.parent)}: correct them, or remove the rows"
        )
    return FileList(Names(paths), facts[:, 0], facts[:, 1])
