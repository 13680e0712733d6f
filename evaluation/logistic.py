"""Logistic regression on features that were extracted once, standardized and L2-penalized: all labels, or a few."""

import math
from argparse import Namespace
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from evaluation.average_precision import mean_average_precision
from evaluation.features import FeatureSet
from evaluation.settings import (
    Note,
    TrainingLabels,
    balanced_rows,
    feasible_values,
    fraction_suffix,
    label_fractions,
)
from evaluation.target import EvaluationTarget
from utils.arg_types import positive_int
from utils.distributed import run_on_first_rank
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.scores import Score

PENALTIES_C = tuple(10.0**e for e in range(-4, 3))  # C, the inverse of the L2 penalty, as in scikit-learn
ITERATIONS = 1000
GRADIENT = 1e-5  # largest element of the gradient, by what L-BFGS varies, at which a fit is done
FOLDS = 5  # of the training rows, to choose the penalty on
ENOUGH = 1000  # rows whose accuracy tells penalties apart: it has a deviation of at most 1.6 points
DEFAULT_SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class LogisticSettings:
    """label_fractions: shares of the labels of each class to train on. The penalty is chosen on held-out images."""

    label_fractions: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class FewshotSettings:
    """shots: the numbers of labels per class. draws: random label subsets for each of them."""

    shots: tuple[int, ...]
    draws: int


def add_fewshot_flags(group: FlagGroup) -> None:
    """Flags of the few-shot evaluation."""
    defaults = " ".join(map(str, DEFAULT_SHOTS))
    group.add_argument("--shots", type=positive_int, nargs="+", metavar="N",
                       help=f"labels per class (default: {defaults}, as far as classes have images)")  # fmt: skip
    group.add_argument("--draws", type=positive_int, default=5, help="number of random label subsets per --shots")


def logistic_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> LogisticSettings:
    """The settings that the flags ask for."""
    return LogisticSettings(label_fractions(flags, labels))


def fewshot_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> FewshotSettings:
    """The settings that the flags ask for and the smallest class allows."""
    limit = "images in the smallest class"
    shots = feasible_values("shots", flags.shots, DEFAULT_SHOTS, labels.smallest_class, limit, note)
    return FewshotSettings(shots, flags.draws)


def logistic(target: EvaluationTarget, settings: LogisticSettings) -> list[Score]:
    """Top-1 accuracy of logistic regression on shares of the labels, by the first rank: its rows are in memory once.

    Of several labels per image, the mean average precision.
    """
    train, val = target.labelled_train, target.labelled_val  # extracted by all ranks

    def score(share: float) -> Score:
        rows = train
        if share < 1:
            chosen = balanced_rows(train.y, share, target.seed)
            rows = FeatureSet(train.x[chosen], train.y[chosen])
        value, c = logistic_score(rows, val, target.seed, target.device)
        name = f"logistic{fraction_suffix(share)}" if train.y.ndim == 1 else "logistic/map"
        return Score(name, value, chosen={"penalty_c": c}, chosen_on=chosen_on(len(rows.y)))

    return run_on_first_rank(lambda: [score(share) for share in settings.label_fractions]) or []


def fewshot(target: EvaluationTarget, settings: FewshotSettings) -> list[Score]:
    """Top-1 accuracy of logistic regression on a few labels per class, mean and deviation over draws."""
    train, val = target.train, target.labelled_val  # extracted by all ranks

    def score(shots: int) -> Score:
        mean, deviation = fewshot_accuracy(train, val, shots, settings.draws, target.seed, target.device)
        return Score(f"fewshot_{shots}", mean, deviation=deviation, labelled_images=shots * target.classes)

    return run_on_first_rank(lambda: [score(shots) for shots in settings.shots]) or []


class Classifier(NamedTuple):
    """A linear classifier of standardized features: `classes`[argmax of ((x - mean) / std) @ weight + bias], x (N, D).

    mean, std: (D,); weight: (D, C); bias, classes: (C,). Of several labels per image, column c of the matrix alone says
    how likely an image has class c.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def score(self, val: FeatureSet, at_once: int = 2**14) -> float:
        """Top-1 in per cent; an image of a class that training lacked is wrong. Of several labels, the mAP."""
        device = self.weight.device
        logits = (((x.to(device) - self.mean) / self.std) @ self.weight + self.bias for x in val.x.split(at_once))
        if val.y.ndim == 2:
            return mean_average_precision(torch.cat([part.cpu() for part in logits]), val.y)
        predicted = [self.classes[part.argmax(dim=1)].cpu() for part in logits]
        return 100 * (torch.cat(predicted) == val.y).double().mean().item()

    def log_loss(self, val: FeatureSet) -> float:
        """Sum over images of -log p(y | x); images of a class that training lacked are left out.

        Of several labels, the sum over classes too.
        """
        x, y, classes = val.x.to(self.weight.device), val.y.to(self.weight.device), self.classes.to(self.weight.device)
        if y.ndim == 1:
            known = torch.isin(y, classes)
            x, y = x[known], torch.searchsorted(classes, y[known])
        if not len(y):
            return 0.0
        w = torch.cat([self.weight, self.bias[None]])
        mean, _ = _objective(w, (x - self.mean) / self.std, y.to(x.dtype) if y.ndim == 2 else y, math.inf)
        return len(y) * mean.item()


class Regression:
    """Logistic regression on the same rows for one penalty after another: what does not depend on it is computed once.

    min  mean_i -log p(y_i | x_i)  +  |W|^2 / (2 C N);  the bias is not penalized. The optimum is that of scikit-learn's
    LogisticRegression(C) behind its StandardScaler, computed on `device`; of several labels per image, one regression
    for each class against the rest.
    """

    def __init__(self, train: FeatureSet, device: torch.device):
        x, y = train.x.to(device), train.y.to(device)
        several = y.ndim == 2
        self.classes: Tensor
        self.target: Tensor
        self.classes, self.target = (
            (torch.arange(y.shape[1]), y.to(x.dtype)) if several else y.unique(return_inverse=True)
        )
        if len(self.classes) < 2 and not several:
            raise UserError(
                f"all {len(y)} labelled training images are of one class, logistic regression needs two; label more "
                f"images"
            )
        mean, std = x.mean(dim=0, dtype=torch.double), x.std(dim=0, correction=0)
        self.mean, self.std = mean.to(x.dtype), std.where(std > 0, 1)  # a coordinate that never changes says nothing
        self.x = (x - self.mean) / self.std
        self.curvature = _curvature(self.x, 1 / 2 if several else 1 / len(self.classes))

    def fit(self, c: float, start: Classifier | None = None) -> Classifier:
        """Fit by L-BFGS. start: a fit with another penalty, to start from.

        L-BFGS varies v = L^T w in place of the weights w, with L of `_curvature_factor`: features are correlated, and
        by w it takes many times as many steps.
        """
        x, factor = self.x, _curvature_factor(self.curvature, c, len(self.x))
        shape = x.shape[1] + 1, len(self.classes)  # the last row is the bias
        v = torch.zeros(shape, dtype=torch.double, device=x.device)
        if start is not None:
            v[:-1], v[-1] = start.weight, start.bias
            if factor is not None:
                v[:-1] = factor.T @ v[:-1]
        w, gradient = v.to(x.dtype), torch.zeros_like(v)
        v.grad = gradient

        def weights() -> Tensor:
            w.copy_(v)
            if factor is not None:
                w[:-1] = torch.linalg.solve_triangular(factor.T, v[:-1], upper=True)
            return w

        @torch.no_grad()
        def objective() -> Tensor:
            loss, by_w = _objective(weights(), x, self.target, c)
            gradient.copy_(by_w)
            if factor is not None:
                gradient[:-1] = torch.linalg.solve_triangular(factor, gradient[:-1], upper=False)
            return loss

        optimizer = torch.optim.LBFGS(
            [v], max_iter=ITERATIONS, max_eval=2 * ITERATIONS, tolerance_grad=GRADIENT, line_search_fn="strong_wolfe"
        )
        optimizer.step(objective)  # type: ignore[arg-type]
        weights()
        return Classifier(self.mean, self.std, w[:-1], w[-1], self.classes)


def fit(train: FeatureSet, c: float, device: torch.device, start: Classifier | None = None) -> Classifier:
    """Fit a `Regression` with one penalty."""
    return Regression(train, device).fit(c, start)


def _curvature(x: Tensor, p: float) -> Tensor | None:
    """p (1 - p) x^T x / N (D, D), float64: curvature of the loss at probability p of a class, without the penalty.

    It is that of some 4 D rows, as the sum need not be exact. With fewer rows than coordinates None: steps are cheap
    there, and a factor is not.
    """
    n, dim = x.shape
    if n < dim:
        return None
    rows = x[:: max(1, n // (4 * dim))]
    return (p * (1 - p) / len(rows)) * (rows.T @ rows).double()


def _curvature_factor(curvature: Tensor | None, c: float, n: int) -> Tensor | None:
    """Cholesky factor L of the curvature with the penalty:  L L^T = curvature + 1 / (C N).  None: the identity."""
    if curvature is None:
        return None
    penalized = curvature.clone()
    penalized.diagonal().add_(1 / (c * n) + 1e-6)  # the last term for coordinates that are sums of others
    factor: Tensor = torch.linalg.cholesky(penalized)
    return factor


@torch.no_grad()
def _objective(w: Tensor, x: Tensor, y: Tensor, c: float, at_once: int = 2**26) -> tuple[Tensor, Tensor]:
    """The penalized loss at w (D + 1, C), and its gradient (D + 1, C); `at_once` bounds the logits in memory.

    y: (N,) classes, or (N, C) ones and zeros.
    """
    n, classes = len(x), w.shape[1]
    loss = w[:-1].double().square().sum() / (2 * c * n)
    gradient = w / (c * n)
    gradient[-1] = 0
    step = max(1, at_once // classes)
    for part, label in zip(x.split(step), y.split(step), strict=True):
        logits = torch.addmm(w[-1], part, w[:-1])  # (rows, C)
        if y.ndim == 2:
            loss += binary_cross_entropy_with_logits(logits, label, reduction="none").double().sum() / n
            error = logits.sigmoid_().sub_(label).div_(n)
        else:
            log_p = logits.log_softmax(dim=1)
            at = torch.arange(len(part), device=x.device), label
            loss -= log_p[at].double().sum() / n
            error = log_p.exp_().div_(n)
            error[at] -= 1 / n
        gradient[:-1].addmm_(part.T, error)
        gradient[-1] += error.sum(dim=0)
    return loss, gradient


def fit_and_score(train: FeatureSet, val: FeatureSet, c: float, device: torch.device) -> float:
    """Score in per cent on `val` of logistic regression on `train`."""
    return fit(train, c, device).score(val)


def choose_penalty(train: FeatureSet, seed: int, device: torch.device) -> float:
    """The best C as `chosen_on` says; the strongest penalty among equals, 1 where no fit is possible."""
    order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(seed))
    folds = order.tensor_split(FOLDS)
    tried, by_accuracy = _comparison(len(order))
    losses = []
    for held in range(min(tried, len(order))):  # with fewer rows than folds the last folds are empty
        rest = torch.cat([fold for i, fold in enumerate(folds) if i != held])
        if len(train.y[rest].unique()) < 2:
            continue
        check = FeatureSet(train.x[folds[held]], train.y[folds[held]])
        regression, model = Regression(FeatureSet(train.x[rest], train.y[rest]), device), None
        for c in PENALTIES_C:  # from the strongest penalty on, each from the optimum of the last one
            model = regression.fit(c, model)
            losses.append(-len(check.y) * model.score(check) if by_accuracy else model.log_loss(check))
    if not losses:
        return 1.0
    totals = np.reshape(losses, (-1, len(PENALTIES_C))).sum(axis=0)
    return PENALTIES_C[int(totals.round(6).argmin())]  # rounded: sums that are equal differ in their last digits


def _comparison(rows: int) -> tuple[int, bool]:
    """How penalties are compared on a number of labelled images: (folds held out in turn, whether by accuracy).

    One fold where it is ENOUGH for accuracy, all where they are together, and log-loss where even these are not: with
    500 labels of CIFAR-10 it lost 0.3 points to the best penalty in the mean of twelve networks and 2.0 at most,
    accuracy in five folds 0.4 and 8.5. Of many images accuracy is the better choice: a few confident mistakes, which
    change no rank of classes, are most of a log-loss.
    """
    largest = -(-rows // FOLDS)
    return (1 if largest >= ENOUGH else FOLDS), rows >= ENOUGH


def chosen_on(rows: int) -> str:
    """In words, on which of a number of labelled training images penalties are compared, and by what."""
    folds, by_accuracy = _comparison(rows)
    if folds == 1:
        return "a held-out fifth of the training images"
    return f"the training images in five folds{'' if by_accuracy else ', by log-loss'}"


def logistic_score(train: FeatureSet, val: FeatureSet, seed: int, device: torch.device) -> tuple[float, float]:
    """Top-1 accuracy (several labels: mAP) in per cent on `val` with all labels; C, which was chosen without `val`."""
    train, val = train.labelled(), val.labelled()
    c = choose_penalty(train, seed, device)
    return fit_and_score(train, val, c, device), c


def fewshot_accuracy(
    train: FeatureSet, val: FeatureSet, shots: int, draws: int, seed: int, device: torch.device
) -> tuple[float, float]:
    """Mean and standard deviation, in per cent, over draws of `shots` labels per class.

    C is 1: a few labels leave none to choose a penalty on.
    """
    train, val = train.labelled(), val.labelled()
    scores = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        rows = torch.cat([_draw(train.y == label, shots, int(label), generator) for label in train.y.unique()])
        scores.append(fit_and_score(FeatureSet(train.x[rows], train.y[rows]), val, 1.0, device))
    return float(np.mean(scores)), float(np.std(scores))


def _draw(mask: Tensor, shots: int, label: int, generator: torch.Generator) -> Tensor:
    rows = mask.nonzero().flatten()
    if len(rows) < shots:
        raise UserError(f"--shots {shots} needs as many images of each class; class {label} has {len(rows)}; lower it")
    return rows[torch.randperm(len(rows), generator=generator)[:shots]]
