"""Labels as a table, a shard or a data set writes them -> positions among sorted classes, -1 where there is none.

An image of a table or of a data set may have several labels; then a matrix says which classes each image has.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.names import shown

UNLABELLED = -1
SEPARATORS = ("|", ";")  # between several labels of an image, as tables write them
SPLIT = f"[{''.join(SEPARATORS)}]"
BITS = {"0", "1", "0.0", "1.0", "False", "True"}
REMEDY = "name another column with --label_column, or pass --unlabelled"


class LabelSets(NamedTuple):
    """Several labels per image. member: (N, C) bool, whether an image has a class; classes: the C names."""

    member: Tensor
    classes: list[str]

    def take(self, rows: Any) -> "LabelSets":
        """The labels of some rows."""
        return LabelSets(self.member[rows], self.classes)


class Labels(NamedTuple):
    """Labels of a column: positions among classes; where images have several labels, -1 for each, and the sets."""

    positions: list[int]
    classes: list[str]
    sets: LabelSets | None = None

    @classmethod
    def none(cls, n: int) -> "Labels":
        """No label for any of n images."""
        return cls([UNLABELLED] * n, [])


def read_labels(values: Sequence[Any], where: str, classes: list[str] | None = None) -> Labels:
    """The labels of a column, one or several per image; see `class_positions` for the arguments.

    Several labels are a list, or text with one of SEPARATORS between them; no label, or an empty list, is unlabelled.
    """
    if not any(isinstance(v, list | tuple) or (isinstance(v, str) and any(s in v for s in SEPARATORS)) for v in values):
        return Labels(*class_positions(values, where, classes))
    parts = [v if isinstance(v, list | tuple) else re.split(SPLIT, _plain(v)) for v in values]
    flat = [part for image in parts for part in image]
    if len(parts[0]) > 2 and {len(image) for image in parts} == {len(parts[0])} and set(map(str, flat)) <= BITS:
        raise UserError(
            f"{where} has {len(parts[0])} zeros and ones per image, not its labels; write the names or the numbers of "
            f"the classes that an image has"
        )
    positions, names = class_positions(flat, where, classes)
    member = torch.zeros(len(parts), len(names), dtype=torch.bool)
    rows, columns = np.repeat(np.arange(len(parts)), [len(image) for image in parts]), np.array(positions, dtype=int)
    member[rows[columns >= 0], columns[columns >= 0]] = True
    return Labels([UNLABELLED] * len(parts), [], LabelSets(member, names))


def class_positions(values: Sequence[Any], where: str, classes: list[str] | None = None) -> tuple[list[int], list[str]]:
    """(labels, class names): whole numbers sorted by value, or else text; empty and -1 are unlabelled.

    values: one per image: text, numbers or None. where: what messages call them. classes: those of another split, to
    which the labels refer; a label that is not among them is an error, and so are several labels of one image and
    numbers that are not whole.
    """
    lists = [value for value in values if isinstance(value, list | tuple | dict)]
    if lists:
        raise _several(where, lists[0])
    found = {value: _plain(value) for value in set(values)}
    numbers = _numbers([name for name in found.values() if name], where)
    if numbers is None:
        if several := next((name for name in sorted(found.values()) if any(s in name for s in SEPARATORS)), None):
            raise _several(where, several)
    else:
        found = {value: str(numbers[name]) if name else "" for value, name in found.items()}
    found = {value: "" if name == str(UNLABELLED) else name for value, name in found.items()}
    if numbers is None:
        names = sorted({name for name in found.values() if name})
    else:
        names = [str(number) for number in sorted(set(numbers.values()) - {UNLABELLED})]
        if names and int(names[0]) < 0:
            raise UserError(f"{where}: the label {names[0]} is negative; only -1 may be, for unlabelled: {REMEDY}")
    if classes is not None:
        if unknown := [name for name in names if name not in set(classes)]:
            shown_names = ", ".join(map(shown, unknown[:3]))
            raise UserError(f"{where}: labels that the training images lack ({shown_names}); remove or rename them")
        names = classes
    position = {name: i for i, name in enumerate(names)} | {"": UNLABELLED}
    return [position[found[value]] for value in values], names


def _plain(value: Any) -> str:
    """A label as text; '' for one that is absent."""
    return "" if value is None or value != value else str(value).strip()


def _numbers(names: list[str], where: str) -> dict[str, int] | None:
    """Whole numbers of the names; None where some name is no number."""
    numbers = {}
    for name in names:
        if "_" in name:  # Python takes 1_12 and 11_2 for one number
            return None
        try:
            number = int(name) if name.lstrip("+-").isdigit() else float(name)
            numbers[name] = int(number)
        except (ValueError, OverflowError):
            return None
        if numbers[name] != number:
            raise UserError(f"{where}: the label {shown(name)} is not a whole number, so it is no class; {REMEDY}")
    return numbers


def _several(where: str, value: Any) -> UserError:
    return UserError(
        f"{where}: {shown(str(value))} is several labels of one image, which are not supported here; keep one "
        f"of them, or {REMEDY}"
    )
