"""The registry of evaluations: name -> function, flags and requirements."""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from evaluation.classifier import add_classifier_flags, classifier_settings, finetune, linear
from evaluation.cluster_images import add_cluster_flags, cluster, cluster_settings
from evaluation.draw import add_picture_flags, draw_pictures, picture_settings
from evaluation.interfaces import Data
from evaluation.knn import add_knn_flags, knn, knn_settings
from evaluation.logistic import add_fewshot_flags, fewshot, fewshot_settings, logistic, logistic_settings
from evaluation.quality import quality, quality_settings
from evaluation.saved_features import add_features_flags, add_format_flag, features, features_settings
from evaluation.settings import Note, TrainingLabels, add_label_fraction_flag
from evaluation.similar import add_similar_flags, similar, similar_settings
from evaluation.target import EvaluationTarget
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.scores import ResultRow, Score

S = TypeVar("S")  # the settings of an evaluation


@dataclass(frozen=True)
class Evaluation(Generic[S]):
    """An evaluation: what it computes, which flags it reads and what it needs.

    summary: a phrase for --help. settings: (flags, counts of labels, note) -> its settings; refuses impossible ones.
    flags: functions that add its flags to a group; two evaluations may share one. required_flags: those without a
    default. needs_labels: of the training images, and validation images. several_labels: of one image are such labels.
    in_all: part of `--evaluation all`.
    is_default: computed where no evaluation is named. single_network: takes one network at a time. implied_by: a flag
    that asks for the evaluation without its name.
    """

    run: Callable[[EvaluationTarget, S], list[Score]]
    settings: Callable[[Namespace, TrainingLabels, Note], S]
    summary: str
    flags: tuple[Callable[[FlagGroup], None], ...] = ()
    required_flags: tuple[str, ...] = ()
    needs_labels: bool = True
    several_labels: bool = False
    in_all: bool = True
    is_default: bool = False
    single_network: bool = False
    implied_by: str = ""


EVALUATIONS: dict[str, Evaluation[Any]] = {
    "linear": Evaluation(
        linear,
        classifier_settings,
        "linear classifier trained by SGD on augmented views, frozen backbone",
        (add_classifier_flags, add_label_fraction_flag),
        is_default=True,
    ),
    "knn": Evaluation(
        knn, knn_settings, "weighted nearest neighbours", (add_knn_flags,), several_labels=True, is_default=True
    ),
    "logistic": Evaluation(
        logistic,
        logistic_settings,
        "logistic regression on features that are extracted once",
        (add_label_fraction_flag,),
        several_labels=True,
    ),
    "fewshot": Evaluation(
        fewshot, fewshot_settings, "logistic regression on a few labels per class", (add_fewshot_flags,)
    ),
    "finetune": Evaluation(
        finetune, classifier_settings, "the whole network fine-tuned", (add_classifier_flags, add_label_fraction_flag)
    ),
    "quality": Evaluation(
        quality, quality_settings, "rank, spectrum, uniformity and alignment of features", needs_labels=False
    ),
    "pictures": Evaluation(
        draw_pictures,
        picture_settings,
        "nearest neighbours, 2-D projection, confusion matrix and a class token's attention as PNG files",
        (add_picture_flags,),
        needs_labels=False,
    ),
    "features": Evaluation(
        features,
        features_settings,
        "features, labels and paths of the images as files for other programs",
        (add_features_flags, add_format_flag),
        needs_labels=False,
        in_all=False,  # files as large as the data set
    ),
    "cluster": Evaluation(
        cluster,
        cluster_settings,
        "k-means clusters of the training images in an .npz file",
        (add_cluster_flags, add_features_flags),
        required_flags=("num_clusters", "cluster_output"),
        needs_labels=False,
        in_all=False,  # it needs a number of clusters
        single_network=True,
    ),
    "similar": Evaluation(
        similar,
        similar_settings,
        "the nearest training images of image files",
        (add_similar_flags, add_features_flags),
        required_flags=("similar",),
        needs_labels=False,
        in_all=False,  # it needs image files
        single_network=True,
        implied_by="similar",
    ),
}
Settings = Mapping[str, Any]  # name of an evaluation -> its settings


def resolve_settings(names: Sequence[str], flags: Namespace, dataset: str, data: Data, print_line: Note) -> Settings:
    """The settings of the named evaluations, with defaults that the labels allow; what they do not allow is refused.

    flags.named: the evaluations that the user typed; the others are left out where the labels do not allow them.
    print_line: prints a remark on defaults that are left out.
    """
    labels = _count_labels(data, "train")
    fit = [name for name in names if name in flags.named or _suits_labels(name, labels)]
    if left_out := [name for name in names if name not in fit]:
        print_line(f"  note: {', '.join(left_out)} left out: images of {dataset} have several labels here")
    _check_labels(fit, dataset, labels, data)
    return {name: EVALUATIONS[name].settings(flags, labels, lambda text: print_line(f"  note: {text}")) for name in fit}


def _suits_labels(name: str, labels: TrainingLabels) -> bool:
    evaluation = EVALUATIONS[name]
    return evaluation.several_labels or not (labels.several and evaluation.needs_labels)


def _count_labels(data: Data, split: str) -> TrainingLabels:
    sets = data.label_sets(split)
    return TrainingLabels.count(data.splits()[split].labels if sets is None else sets)


def _check_labels(names: Sequence[str], dataset: str, labels: TrainingLabels, data: Data) -> None:
    """Refuse evaluations that need labels where there are none, or one label per image where there are several."""
    needing = [name for name in names if EVALUATIONS[name].needs_labels]
    if unfit := [name for name in needing if not _suits_labels(name, labels)]:
        fit = [name for name, evaluation in EVALUATIONS.items() if evaluation.several_labels]
        raise UserError(
            f"--evaluation {unfit[0]} needs one label per image, {dataset} has several here; ask for "
            f"{', '.join(fit)}, or name a column of single labels with --label_column"
        )
    if needing and (data.val is None or not labels.labelled or not _count_labels(data, "val").labelled):
        missing = "validation images" if data.val is None else "labels"
        others = [name for name, evaluation in EVALUATIONS.items() if not evaluation.needs_labels]
        raise UserError(
            f"--evaluation {needing[0]} needs labels and validation images, {dataset} has no {missing} here; name "
            f"--train_dir and --val_dir with class folders, or ask for {', '.join(others)}"
        )


def evaluate(target: EvaluationTarget, settings: Settings) -> ResultRow:
    """The row of the target, with every score of the evaluations that have settings."""
    started = time.perf_counter()
    scores = [score for name, s in settings.items() for score in EVALUATIONS[name].run(target, s)]
    return replace(target.result_row(), scores=scores, seconds=time.perf_counter() - started)
