"""Measured numbers with their machine-readable keys: a score, and the scores of one network as a row of a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENT = "%"  # unit of an accuracy; "" is a plain number
TOP_1 = "top-1 accuracy in per cent on the validation images of"
MAP = "average precision in per cent on the validation images, which have several labels, mean over their classes, of"
DEFINITIONS = {  # pattern of a whole key -> its definition; \\1 is a part of the key
    r"knn_(\d+)": f"{TOP_1} the \\1 nearest training images by cosine, each weighted by exp(cosine / 0.07)",
    r"knn_(\d+)/map": f"{MAP} the share of the \\1 nearest training images by cosine that have a class, each weighted "
    "by exp(cosine / 0.07)",
    r"logistic/map": f"{MAP} a logistic regression (L-BFGS, L2) per class on standardized features of all training "
    "images; penalty chosen on some of them, as `chosen` says",
    r"logistic$": f"{TOP_1} logistic regression (L-BFGS, L2) on standardized features of all training images; penalty "
    "chosen on some of them, as `chosen` says",
    r"logistic_([\d.]+)pct": f"{TOP_1} logistic regression (L-BFGS, L2) on standardized features of \\1 % of the "
    "training images of each class; penalty chosen on some of them, as `chosen` says",
    r"linear_sgd$": f"{TOP_1} a linear classifier trained by SGD on augmented views with a frozen backbone; last epoch",
    r"linear_sgd_([\d.]+)pct": f"{TOP_1} a linear classifier trained by SGD on augmented views of \\1 % of the "
    "training images of each class with a frozen backbone; last epoch",
    r"finetune$": f"{TOP_1} the whole network trained on the labels of all training images; last epoch",
    r"finetune_([\d.]+)pct": f"{TOP_1} the whole network trained on \\1 % of the labels of each class; last epoch",
    r"fewshot_(\d+)/mean": f"{TOP_1} logistic regression on \\1 labels of each class, mean over random draws",
    r"fewshot_(\d+)/std": "standard deviation over random draws of \\1 labels of each class, in points",
    r"quality/rankme": "RankMe of the validation features, arXiv:2210.02885, eq. 1",
    r"quality/alpha_req": "exponent of the power law of the eigenvalues of the features' covariance",
    r"quality/uniformity": "uniformity of the validation features, arXiv:2005.10242",
    r"quality/alignment": "mean squared distance of the normalized features of two views of an image",
    r"quality/std": "mean standard deviation of the coordinates of normalized features",
    r"cluster/nmi": "normalized mutual information of clusters and labels of the training images",
    r"cluster/purity": "share of training images that have the most frequent label of their cluster",
    r"loss": "loss of the last logged step",
    r"probe_acc": "top-1 accuracy in per cent of the online probe on training views, last logged step",
    r"val_probe_acc": f"{TOP_1} the online probe, last epoch",
    r"images_per_second": "source images per second of the last epoch, data included, evaluation left out",
    r"data_wait_fraction": "share of the last epoch's time that steps waited for data",
    r"peak_memory_bytes": "largest memory in use: of the device, or of the process on a CPU",
}


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

    seconds: that computing the scores took. run: name of the folder or file of the weights.
    """

    title: str
    backbone: str
    method: str
    pretrained_on: str
    scores: Sequence[Score] = ()
    seconds: float = 0.0
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


def definition(key: str) -> str:
    """What the score with this key measures; a key without a definition is a KeyError."""
    for pattern, text in DEFINITIONS.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(text)
    raise KeyError(f"score {key} has no definition in utils/scores.py")


def all_numbers(rows: Sequence[ResultRow]) -> dict[str, float]:
    """The numbers of all rows, under "<row>/<key>"."""
    return {f"{row.slug}/{key}": number for row in rows for key, number in row.numbers().items()}
