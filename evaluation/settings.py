"""Settings of evaluations that depend on how many labelled training images there are."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.arg_types import number
from utils.errors import UserError
from utils.optim import FlagGroup

Note = Callable[[str], None]  # prints a remark for the user


@dataclass(frozen=True)
class TrainingLabels:
    """Counts of the training images: all, labelled ones, classes that occur, images of the smallest class.

    several: whether images may have several labels.
    """

    images: int
    labelled: int
    classes: int
    smallest_class: int
    several: bool = False

    @classmethod
    def count(cls, labels: Tensor) -> "TrainingLabels":
        """Count labels: (N,), -1 unknown, or (N, C) bool, the classes of each image."""
        if labels.ndim == 2:
            counts = labels.sum(dim=0)
            counts = counts[counts > 0]
            return cls(len(labels), int(labels.any(dim=1).sum()), len(counts), min(counts.tolist(), default=0), True)
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


def add_label_fraction_flag(group: FlagGroup) -> None:
    """The flag of evaluations that can train on a part of the labels."""
    group.add_argument("--label_fraction", type=number(float, 0, 1, above=True), nargs="+", default=[1.0],
                       metavar="FRACTION",
                       help="fractions of the labels of each class to train on, as 0.01 0.1 1; each is a column "
                       "of its own")  # fmt: skip


def label_fractions(flags: Namespace, labels: TrainingLabels) -> tuple[float, ...]:
    """The fractions of the labels that the flags ask for; one below an image per class is refused."""
    smallest = min(flags.label_fraction)
    if labels.several and smallest < 1:
        raise UserError(
            f"--label_fraction {smallest:g} draws images of each class, which needs one label per image; leave it out"
        )
    if smallest * labels.labelled < labels.classes:
        raise UserError(
            f"--label_fraction {smallest:g} of {labels.labelled} labels is less than one for each of "
            f"{labels.classes} classes; raise it"
        )
    return tuple(flags.label_fraction)


def _share(fraction: float, images: int) -> int:
    return max(1, round(fraction * images))


def check_rates_can_be_chosen(lrs: Sequence[float], fractions: Sequence[float], labels: TrainingLabels) -> None:
    """Refuse several learning rates where a fraction leaves less than an image to train on and one to choose on."""
    smallest = min(fractions)
    if len(lrs) == 1 or _share(smallest, labels.smallest_class) >= 2:
        return
    rates = f"--lr {' '.join(f'{lr:g}' for lr in lrs)}"
    if labels.smallest_class < 2:
        raise UserError(f"{rates}: there is a class with 1 image, and choosing a rate needs 2; name one --lr")
    raise UserError(
        f"{rates}: --label_fraction {smallest:g} leaves 1 image of a class, and choosing a rate needs 2; name one "
        f"--lr, or raise --label_fraction"
    )


def fraction_suffix(fraction: float) -> str:
    """The end of a score's key that says which share of the labels it took: "_1pct", and nothing for all."""
    return "" if fraction == 1 else f"_{100 * fraction:g}pct"


def balanced_rows(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted positions of `fraction` of each class, at least one image of each; unlabelled images are left out.

    The same seed gives the same images, and a larger fraction contains the smaller one.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for label in labels[labels >= 0].unique():
        of_class = order[labels[order] == label]
        chosen.append(of_class[: _share(fraction, len(of_class))])
    return torch.cat(chosen).sort().values
