"""The evaluation "quality": how much of the space features use, and whether two views agree, without labels."""

from argparse import Namespace
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.settings import Note, TrainingLabels
from evaluation.target import EvaluationTarget
from utils.feature_quality import quality_numbers
from utils.scores import Score

ROWS = 10_000  # validation images at most whose uniformity is measured: its cost grows with their square
WIDEST = 16_384  # features wider than that have no spectrum in memory: raw pixels of large views


@dataclass(frozen=True)
class QualitySettings:
    """The quality of features has no settings."""


def quality_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> QualitySettings:
    """The settings, of which there are none."""
    return QualitySettings()


def quality(target: EvaluationTarget, settings: QualitySettings) -> list[Score]:
    """Rank, spectrum, spread and alignment of features; none of very wide ones, as raw pixels of large views."""
    x = (target.val or target.train).x
    if x.shape[1] > WIDEST:
        return []
    return [Score(name, number, unit="") for name, number in quality_of(x, target.two_views()).items()]


def quality_of(x: Tensor, pair: tuple[Tensor, Tensor] | None = None) -> dict[str, float]:
    """Key -> number of features x (N, D); at most ROWS rows count. pair: features of two views of some images."""
    rows = torch.linspace(0, len(x) - 1, min(len(x), ROWS)).long()
    return {f"quality/{name}": number for name, number in quality_numbers(x[rows], pair).items()}
