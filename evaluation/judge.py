"""The evaluations of main_linear.py by name, what they judge, and the table that they fill."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation import pictures
from evaluation.features import Features, extract
from evaluation.knn import knn_accuracy, knn_guess
from evaluation.linear import fewshot_accuracy, probe_accuracy
from evaluation.quality import quality
from evaluation.store import fingerprint, write_features
from evaluation.train import finetune_accuracy, linear_accuracy
from utils.distributed import rank

Numbers = dict[str, float]
PAIRS = 2048  # training images whose two views say how well views agree
ROWS = 10_000  # held-out images at most whose features' spread is measured: its cost grows with their square
WIDEST = 16_384  # features wider than that have no spectrum in memory: raw pixels of large views
DECIMALS = {"alpha-ReQ": 3, "alignment": 3, "uniformity": 3, "std": 4}  # in the table; accuracies have one


class RawPixels(nn.Module):
    """The images themselves as features: what every backbone has to beat."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Subject:
    """A row of the table: a network on its device, and the data set that it is judged on.

    data: gives `plain_dataloader(split, device)`, clean batches, and `augmented(rows, device)`, batches of two views of
    training images. crops: gives `training(rows, device)`, epochs of one cropped view each.
    folder: where files go. Features are extracted when they are first asked for, and once.
    """

    def __init__(
        self, title: str, network: nn.Module, data: Any, crops: Any, device: torch.device, args: Namespace, folder: Path
    ):
        self.title, self.network, self.data, self.crops = title, network.to(device), data, crops
        self.device, self.args, self.folder, self.classes = device, args, folder, data.data.classes

    @property
    def short(self) -> str:
        """The title as part of a file name."""
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in self.title)

    def _clean(self, split: str) -> Features:
        return extract(self.network, self.data.plain_dataloader(split, self.device), f"{self.title}, {split}")

    @cached_property
    def train(self) -> Features:
        return self._clean("train")

    @cached_property
    def val(self) -> Features:
        return self._clean("val")

    def training(self, rows: Tensor) -> Any:
        """Epochs of augmented batches of some training images."""
        return self.crops.training(rows.numpy(), self.device)

    @torch.no_grad()
    def pair(self) -> tuple[Tensor, Tensor]:
        """Features (M, D) of two augmented views of the same training images, evenly spread over the data set."""
        n = len(self.data.data.train)
        rows = torch.linspace(0, n - 1, min(n, PAIRS)).long().tolist()
        self.network.eval()
        views = [[self.network(v).float().cpu() for v in b.views[:2]] for b in self.data.augmented(rows, self.device)]
        return torch.cat([a for a, _ in views]), torch.cat([b for _, b in views])


def probe(subject: Subject) -> Numbers:
    """Logistic regression on all labels."""
    accuracy, strength = probe_accuracy(subject.train, subject.val, subject.args.seed)
    return {"linear probe": accuracy, "linear probe C": strength}


def knn(subject: Subject) -> Numbers:
    """Weighted nearest neighbours; k beyond the labelled training images is left out."""
    ks = [k for k in subject.args.knn_k if k <= len(subject.train.labelled().x)]
    found = knn_accuracy(subject.train, subject.val, ks, subject.classes) if ks else {}
    return {f"kNN {k}": accuracy for k, accuracy in found.items()}


def fewshot(subject: Subject) -> Numbers:
    """Logistic regression on each of --shots labels per class, mean and deviation over --draws."""
    args = subject.args
    out: Numbers = {}
    for shots in args.shots:
        mean, deviation = fewshot_accuracy(subject.train, subject.val, shots, args.draws, args.seed)
        name = f"{shots * subject.classes} labels"
        out |= {name: mean, f"{name} +-": deviation}
    return out


def label_free(subject: Subject) -> Numbers:
    """Rank and spectrum, spread and agreement of the features; of raw pixels of large views nothing."""
    x = subject.val.x
    if x.shape[1] > WIDEST:
        return {}
    rows = torch.linspace(0, len(x) - 1, min(len(x), ROWS)).long()
    return quality(x[rows], subject.pair())


def linear(subject: Subject) -> Numbers:
    """A linear classifier on the frozen backbone, on augmented views, the last epoch; raw pixels have no backbone."""
    if isinstance(subject.network, RawPixels):
        return {}
    score, lr = linear_accuracy(subject)
    return {f"linear{_fraction(subject.args)}": score, "linear lr": lr}


def finetune(subject: Subject) -> Numbers:
    """The whole network trained on the labels, the last epoch."""
    if isinstance(subject.network, RawPixels):
        return {}
    score, lr = finetune_accuracy(subject)
    return {f"finetune{_fraction(subject.args)}": score, "finetune lr": lr}


def _fraction(args: Namespace) -> str:
    return "" if args.label_fraction == 1 else f", {100 * args.label_fraction:g} % of labels"


def draw(subject: Subject) -> Numbers:
    """Nearest neighbours, the plane and who is taken for whom, as PNG in the folder; drawn by the first rank."""
    train, val, images = subject.train, subject.val, subject.data.data
    labelled, k = val.labelled(), min(20, len(train.labelled().x))
    if rank() == 0:
        paths = [subject.folder / f"{subject.short}_{name}.png" for name in ("neighbours", "embedding", "confusion")]
        pictures.neighbours(paths[0], train, val, images.train, images.val, 0, subject.args.seed)
        pictures.embedding(paths[1], val, images.train.classes, subject.args.seed)
        guess = knn_guess(train, labelled, [k], subject.classes)[k]
        pictures.confusion(paths[2], labelled.y, guess, images.train.classes)
    return {}


def features(subject: Subject) -> Numbers:
    """Features, labels and indices of both splits as .npy, below --features_dir or the folder."""
    root = Path(subject.args.features_dir or subject.folder / "features") / subject.short
    made_of = {"weights": fingerprint(subject.network), "size": subject.data.size, "dataset": subject.args.dataset}
    for split, images in (("train", subject.data.data.train), ("val", subject.data.data.val)):
        loader = subject.data.plain_dataloader(split, subject.device)
        about = made_of | {f"{split} images": images.fingerprint()}
        write_features(subject.network, loader, split, root / split, about)
    return {}


def transfer(subject: Subject) -> Numbers:
    """Probe and kNN on another data set than the backbone was trained on."""
    return {f"transfer {name}": number for name, number in (probe(subject) | knn(subject)).items()}


EVALUATIONS: dict[str, Callable[[Subject], Numbers]] = {
    "features": features,
    "fewshot": fewshot,
    "finetune": finetune,
    "knn": knn,
    "linear": linear,
    "pictures": draw,
    "probe": probe,
    "quality": label_free,
    "transfer": transfer,
}


def judge(subject: Subject) -> Numbers:
    """Every number of --evaluation for one row of the table."""
    return {name: number for e in subject.args.evaluation for name, number in EVALUATIONS[e](subject).items()}


def table(rows: Mapping[str, Numbers]) -> str:
    """A line per row, a column per number, accuracies in per cent; a deviation beside its mean."""
    columns = [c for c in dict.fromkeys(c for n in rows.values() for c in n) if not c.endswith((" +-", " C", " lr"))]
    lines = [["", *columns]] + [[name, *(_cell(numbers, c) for c in columns)] for name, numbers in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _cell(numbers: Numbers, column: str) -> str:
    if column not in numbers:
        return "-"
    deviation = f" +- {numbers[f'{column} +-']:.1f}" if f"{column} +-" in numbers else ""
    return f"{numbers[column]:.{DECIMALS.get(column, 1)}f}" + deviation
