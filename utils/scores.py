"""Measured numbers with their machine-readable keys: a score, and the scores of one network as a row of a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENT = "%"  # unit of an accuracy; "" is a plain number


@dataclass(frozen=True)
class Score:
    """A measured number.

    name: snake_case key, parts joined by "/" ("knn_20", "quality/rankme"). unit: PERCENT or "". deviation: standard
    deviation where value is a mean. chosen: hyperparameters that were chosen ({"lr": 0.3}), on the images that
    chosen_on names. labelled_images: how many training labels it took, None for all that were asked for.
    """

    name: str
    value: float
    unit: str = PERCENT
    deviation: float | None = None
    chosen: Mapping[str, float] = field(default_factory=dict)
    chosen_on: str = ""
    labelled_images: int | None = None

    def numbers(self) -> dict[str, float]:
        """Key -> number: the value, or "<name>/mean" and "<name>/std" of a score with a deviation."""
        if self.deviation is None:
            return {self.name: self.value}
        return {f"{self.name}/mean": self.value, f"{self.name}/std": self.deviation}


@dataclass(frozen=True)
class ResultRow:
    """The scores of one network. method, pretrained_on, seed and run are empty where no pretraining is known.

    run: name of the folder or file of the weights.
    """

    title: str
    backbone: str
    method: str
    pretrained_on: str
    scores: Sequence[Score] = ()
    seed: str = ""
    run: str = ""

    @property
    def label(self) -> str:
        """The title with the method, the seed and the run that it does not name."""
        return network_label(self.title, self.method, self.seed, self.run)

    @property
    def slug(self) -> str:
        """The title as part of a key or a file name: letters, digits, dots, dashes and underscores."""
        return slug(self.title)

    def numbers(self) -> dict[str, float]:
        """Key -> number of all scores; a chosen hyperparameter is not among them."""
        return {key: number for score in self.scores for key, number in score.numbers().items()}

    def as_json(self) -> dict[str, Any]:
        """The row as an entry of summary.json."""
        chosen = {s.name: {**s.chosen, "chosen_on": s.chosen_on} for s in self.scores if s.chosen}
        return {
            "backbone": self.backbone,
            "method": self.method,
            "pretrained_on": self.pretrained_on,
            "seed": self.seed,
            "run": self.run,
            "scores": self.numbers(),
            "chosen": chosen,
        }


Rows = list[ResultRow]  # a table


def network_label(title: str, method: str, seed: str, run: str) -> str:
    """A title with the method, the seed and the run that are known and that it does not name."""
    parts = [part.partition(" on ")[0] for part in title.split(", ")]
    return ", ".join([title, *(part for part in (method, seed and f"seed {seed}", run) if part and part not in parts)])


def slug(title: str) -> str:
    """The title with every run of other characters than letters, digits, dots, dashes and underscores as one "_"."""
    return re.sub(r"[^\w.\-]+", "_", title)


def all_numbers(rows: Sequence[ResultRow]) -> dict[str, float]:
    """The numbers of all rows, under "<row>/<key>"."""
    return {f"{row.slug}/{key}": number for row in rows for key, number in row.numbers().items()}
