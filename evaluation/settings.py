"""Settings of evaluations that depend on how many labelled training images there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from utils.errors import UserError

Note = Callable[[str], None]  # prints a remark for the user


@dataclass(frozen=True)
class TrainingLabels:
    """Counts of the training images: all, labelled ones, classes that occur, images of the smallest class."""

    images: int
    labelled: int
    classes: int
    smallest_class: int

    @classmethod
    def count(cls, labels: Tensor) -> "TrainingLabels":
        """Count labels (N,), -1 unknown."""
        known = labels[labels >= 0]
        per_class = known.unique(return_counts=True)[1]
        return cls(len(labels), len(known), len(per_class), int(per_class.min()) if len(known) else 0)


def feasible_values(
    flag: str, requested: Sequence[int] | None, defaults: Sequence[int], maximum: int, limit: str, note: Note
) -> tuple[int, ...]:
    """Requested values, all of which must be feasible; else the feasible defaults, with a note on the others.

    maximum: largest feasible value. limit: what there are `maximum` of, in words.
    """
    if requested is not None:
        if max(requested) > maximum:
            raise UserError(f"--{flag} {max(requested)} exceeds the {maximum} {limit}; lower it")
        return tuple(requested)
    if left_out := [n for n in defaults if n > maximum]:
        note(f"--{flag} {' '.join(map(str, left_out))} left out: there are {maximum} {limit}")
    return tuple(n for n in defaults if n <= maximum)
