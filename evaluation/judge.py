"""The evaluations of main_linear.py by name, and the table that they fill."""

from argparse import Namespace
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from evaluation.features import Features
from evaluation.knn import knn_accuracy
from evaluation.linear import fewshot_accuracy, probe_accuracy

Numbers = dict[str, float]


class RawPixels(nn.Module):
    """The images themselves as features: what every backbone has to beat."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def probe(train: Features, val: Features, args: Namespace, classes: int) -> Numbers:
    """Logistic regression on all labels."""
    accuracy, strength = probe_accuracy(train, val, args.seed)
    return {"linear probe": accuracy, "linear probe C": strength}


def knn(train: Features, val: Features, args: Namespace, classes: int) -> Numbers:
    """Weighted nearest neighbours; k beyond the labelled training images is left out."""
    ks = [k for k in args.knn_k if k <= len(train.labelled().x)]
    return {f"kNN {k}": accuracy for k, accuracy in knn_accuracy(train, val, ks, classes).items()} if ks else {}


def fewshot(train: Features, val: Features, args: Namespace, classes: int) -> Numbers:
    """Logistic regression on --shots labels per class, mean and deviation over --draws."""
    mean, deviation = fewshot_accuracy(train, val, args.shots, args.draws, args.seed)
    name = f"{args.shots * classes} labels"
    return {name: mean, f"{name} +-": deviation}


EVALUATIONS: dict[str, Callable[[Features, Features, Namespace, int], Numbers]] = {
    "fewshot": fewshot,
    "knn": knn,
    "probe": probe,
}


def table(rows: Mapping[str, Numbers]) -> str:
    """Accuracies in per cent: a line per row, a column per number; a deviation beside its mean."""
    columns = [c for c in next(iter(rows.values())) if not c.endswith((" +-", " C"))]
    lines = [["", *columns]]
    for name, numbers in rows.items():
        cells = [
            f"{numbers[c]:.1f}" + (f" +- {numbers[f'{c} +-']:.1f}" if f"{c} +-" in numbers else "") for c in columns
        ]
        lines.append([name, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])
