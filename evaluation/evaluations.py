"""The evaluations of main_linear.py by name, and what they evaluate."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation import pictures
from evaluation.classifier import finetune_accuracy, linear_accuracy
from evaluation.cluster_images import check_clusters, cluster
from evaluation.feature_files import write_split
from evaluation.knn import knn_accuracy, knn_guess
from evaluation.logistic import fewshot_accuracy, probe_accuracy
from evaluation.quality import quality
from evaluation.table import Numbers
from evaluation.target import EvaluationTarget, RawPixels
from utils.distributed import rank
from utils.errors import UserError

LABEL_FREE = ("cluster", "features", "pictures", "quality")  # evaluations that need neither labels nor held-out images
KNN_K, SHOTS = (20, 200), (1, 2, 4, 8, 16)  # where none are named: those that the data set is large enough for
PAIRS = 2048  # training images whose two views say how well views agree
ROWS = 10_000  # held-out images at most whose features' spread is measured: its cost grows with their square
WIDEST = 16_384  # features wider than that have no spectrum in memory: raw pixels of large views


def check_and_fill_defaults(args: Namespace, train: Tensor, val: Tensor | None, say: Callable[[str], Any]) -> Namespace:
    """The arguments with neighbours and shots that these labels allow; what they do not allow is refused, or said.

    train, val: labels (N,), -1 unknown, of the training and the held-out images.
    """
    if "cluster" in args.evaluation:
        check_clusters(args, len(train))
    needy = [name for name in args.evaluation if name not in LABEL_FREE]
    known = train[train >= 0]
    if needy and (val is None or not len(known) or not bool((val >= 0).any())):
        lacks = "validation images" if val is None else "labels"
        raise UserError(
            f"--evaluation {needy[0]} needs labels and validation images, {args.dataset} has no {lacks} here; name "
            f"--train_dir and --val_dir with class folders, or ask for {', '.join(LABEL_FREE)}"
        )
    each = known.unique(return_counts=True)[1]
    least = int(each.min()) if len(known) else 0
    if {"linear", "finetune"} & {*needy} and args.label_fraction * len(known) < len(each):
        raise UserError(
            f"--label_fraction {args.label_fraction:g} of {len(known)} labels is less than one for each of "
            f"{len(each)} classes; raise it"
        )
    ks = _fitting("knn_k", args.knn_k, KNN_K, len(known), "labelled training images", say if "knn" in needy else None)
    shots = _fitting(
        "shots", args.shots, SHOTS, least, "images in the smallest class", say if "fewshot" in needy else None
    )
    return Namespace(**vars(args) | {"knn_k": ks, "shots": shots})


def _fitting(
    flag: str, typed: list[int] | None, usual: tuple[int, ...], most: int, what: str, say: Callable | None
) -> list[int]:
    """Typed numbers, all of which must be possible; or those of the usual ones that are, and a word on the others."""
    if typed is not None and max(typed) > most:
        raise UserError(f"--{flag} {max(typed)}: there are {most} {what}; lower it")
    left_out = [n for n in usual if n > most]
    if typed is None and left_out and say is not None:
        say(f"  note: --{flag} {' '.join(map(str, left_out))} left out: there are {most} {what}")
    return typed if typed is not None else [n for n in usual if n <= most]


def probe(subject: EvaluationTarget) -> Numbers:
    """Logistic regression on all labels."""
    accuracy, strength = probe_accuracy(subject.train, subject.labelled_val, subject.args.seed, subject.device)
    return {"linear probe": accuracy, "linear probe C": strength}


def knn(subject: EvaluationTarget) -> Numbers:
    """Weighted nearest neighbours, for each k of --knn_k."""
    ks = subject.args.knn_k
    found = knn_accuracy(subject.train, subject.labelled_val, ks, subject.classes, subject.device) if ks else {}
    return {f"kNN {k}": accuracy for k, accuracy in found.items()}


def fewshot(subject: EvaluationTarget) -> Numbers:
    """Logistic regression on each of --shots labels per class, mean and deviation over --draws."""
    args = subject.args
    out: Numbers = {}
    for shots in args.shots:
        mean, deviation = fewshot_accuracy(
            subject.train, subject.labelled_val, shots, args.draws, args.seed, subject.device
        )
        name = f"{shots * subject.classes} labels"
        out |= {name: mean, f"{name} +-": deviation}
    return out


def label_free(subject: EvaluationTarget) -> Numbers:
    """Rank and spectrum, spread and agreement of the features; of raw pixels of large views nothing."""
    x = (subject.val or subject.train).x
    if x.shape[1] > WIDEST:
        return {}
    rows = torch.linspace(0, len(x) - 1, min(len(x), ROWS)).long()
    return quality(x[rows], subject.pair())


def linear(subject: EvaluationTarget) -> Numbers:
    """A linear classifier on the frozen backbone, on augmented views, the last epoch; raw pixels have no backbone."""
    if isinstance(subject.network, RawPixels):
        return {}
    score, lr = linear_accuracy(subject)
    return {f"linear{_fraction(subject.args)}": score, "linear lr": lr}


def finetune(subject: EvaluationTarget) -> Numbers:
    """The whole network trained on the labels, the last epoch."""
    if isinstance(subject.network, RawPixels):
        return {}
    score, lr = finetune_accuracy(subject)
    return {f"finetune{_fraction(subject.args)}": score, "finetune lr": lr}


def _fraction(args: Namespace) -> str:
    return "" if args.label_fraction == 1 else f", {100 * args.label_fraction:g} % of labels"


def draw(subject: EvaluationTarget) -> Numbers:
    """Nearest neighbours, the plane and who is taken for whom, as PNG in the folder; drawn by the first rank."""
    train, val, images, args = subject.train, subject.val, subject.data.data, subject.args
    k = min(20, len(train.labelled().x))
    if rank() == 0:
        paths = [subject.folder / f"{subject.short}_{name}.png" for name in ("neighbours", "embedding", "confusion")]
        pictures.neighbours(paths[0], train, val, images, args.seed)
        pictures.embedding(paths[1], val or train, images.train.classes, args.seed, args.embedding)
        if k and val is not None and len(val.labelled().x):
            guess = knn_guess(train, val.labelled(), [k], subject.classes, subject.device)[k]
            pictures.confusion(paths[2], val.labelled().y, guess, images.train.classes)
    return {}


def features(subject: EvaluationTarget) -> Numbers:
    """Features, labels and indices of each split as .npy, below --features_dir or the folder."""
    root = Path(subject.args.features_dir or subject.folder / "features") / subject.short
    for split in subject.data.data.splits():
        write_split(subject, split, root / split)
    return {}


def transfer(subject: EvaluationTarget) -> Numbers:
    """Probe and kNN on another data set than the backbone was trained on."""
    return {f"transfer {name}": number for name, number in (probe(subject) | knn(subject)).items()}


EVALUATIONS: dict[str, Callable[[EvaluationTarget], Numbers]] = {
    "cluster": cluster,
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


def evaluate(subject: EvaluationTarget) -> Numbers:
    """Every number of --evaluation for one row of the table."""
    return {name: number for e in subject.args.evaluation for name, number in EVALUATIONS[e](subject).items()}
