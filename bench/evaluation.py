"""Seconds of the evaluations on features: 50,000 x 512 for training, 10,000 for validation, 10 classes.

The features are random, classes apart by about their standard deviation: seconds depend on
the sizes.
"""

import time
from collections.abc import Callable

import torch

from bench.sides import Settings, Work
from evaluation.features import FeatureSet
from evaluation.knn import knn_accuracy
from evaluation.logistic import logistic_score
from utils.feature_quality import quality_numbers

CLASSES, WIDTH = 10, 512
EVALUATIONS: dict[str, Callable[[FeatureSet, FeatureSet], object]] = {
    "knn": lambda train, val: knn_accuracy(train, val, [20, 200], CLASSES),
    "logistic": lambda train, val: logistic_score(train, val, 0, torch.device("cpu")),
    "quality": lambda train, val: quality_numbers(val.x),
}


def features(n: int, seed: int) -> FeatureSet:
    """n rows of random features with labels."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    y = torch.arange(n) % CLASSES
    return FeatureSet((0.15 * centres[y] + torch.randn(n, WIDTH, generator=g)).relu(), y)


def evaluation(settings: Settings, name: str) -> Work:
    """Seconds of one of EVALUATIONS."""
    train, val = features(50_000, 0), features(10_000, 1)

    def seconds() -> float:
        start = time.perf_counter()
        EVALUATIONS[name](train, val)
        return time.perf_counter() - start

    return Work(seconds)
