"""Linear probes on features that were extracted once: logistic regression, standardized and L2-penalized."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.features import FeatureSet
from utils.errors import UserError

STRENGTHS = tuple(10.0**e for e in range(-4, 3))  # C, the inverse of the L2 penalty, as in scikit-learn
ITERATIONS = 1000
GRADIENT = 1e-5  # largest element of the gradient at which a fit is done: a tenth of what scikit-learn asks
HELD_OUT = 0.2  # of the training rows, to choose the penalty on


class Classifier(NamedTuple):
    """x (N, D) -> `classes`[argmax of ((x - mean) / std) @ weight + bias]; mean, std: (D,), bias, classes: (C,)."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def accuracy(self, val: FeatureSet, at_once: int = 2**14) -> float:
        """Top-1 in per cent; an image of a class that training lacked is wrong."""
        device = self.weight.device
        guess = [
            self.classes[(((x.to(device) - self.mean) / self.std) @ self.weight + self.bias).argmax(dim=1)].cpu()
            for x in val.x.split(at_once)
        ]
        return 100 * (torch.cat(guess) == val.y).double().mean().item()


def fit(train: FeatureSet, strength: float, device: torch.device, start: Classifier | None = None) -> Classifier:
    """Logistic regression by L-BFGS:  min  mean_i -log p(y_i | x_i)  +  |W|^2 / (2 C N);  the bias is not penalized.

    strength: C. start: a fit on the same rows with another penalty, from which fewer steps lead here. The optimum is
    that of scikit-learn's LogisticRegression(C) behind its StandardScaler; this one runs on the device of the backbone.
    """
    x, y = train.x.to(device), train.y.to(device)
    classes, target = y.unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"all {len(y)} labelled training images are of one class, a probe needs two; judge by more labels"
        )
    mean, std = x.mean(dim=0, dtype=torch.double), x.std(dim=0, correction=0)
    mean, std = mean.to(x.dtype), std.where(std > 0, 1)  # a coordinate that never changes says nothing
    x = (x - mean) / std
    w = torch.zeros(x.shape[1] + 1, len(classes), dtype=x.dtype, device=device)  # the last row is the bias
    if start is not None:
        w[:-1], w[-1] = start.weight, start.bias
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.LBFGS(
        [w], max_iter=ITERATIONS, max_eval=2 * ITERATIONS, tolerance_grad=GRADIENT, line_search_fn="strong_wolfe"
    )
    optimizer.step(lambda: _objective(w, x, target, strength))  # type: ignore[arg-type]
    return Classifier(mean, std, w[:-1], w[-1], classes)


@torch.no_grad()
def _objective(w: Tensor, x: Tensor, y: Tensor, strength: float, at_once: int = 2**26) -> Tensor:
    """The penalized loss at w (D + 1, C), whose gradient is left in w.grad; `at_once` bounds the logits in memory."""
    n, classes = len(x), w.shape[1]
    loss = w[:-1].double().square().sum() / (2 * strength * n)
    assert w.grad is not None
    w.grad.copy_(w / (strength * n))
    w.grad[-1] = 0
    step = max(1, at_once // classes)
    for part, label in zip(x.split(step), y.split(step), strict=True):
        log_p = torch.addmm(w[-1], part, w[:-1]).log_softmax(dim=1)  # (rows, C)
        at = torch.arange(len(part), device=x.device), label
        loss -= log_p[at].double().sum() / n
        error = log_p.exp_().div_(n)
        error[at] -= 1 / n
        w.grad[:-1].addmm_(part.T, error)
        w.grad[-1] += error.sum(dim=0)
    return loss


def fit_and_score(train: FeatureSet, val: FeatureSet, strength: float, device: torch.device) -> float:
    """Accuracy in per cent on `val` of logistic regression on `train`."""
    return fit(train, strength, device).accuracy(val)


def choose_strength(train: FeatureSet, seed: int, device: torch.device) -> float:
    """The C that does best on a fifth of the training rows, held out; the strongest penalty among equals."""
    order = torch.randperm(len(train.x), generator=torch.Generator().manual_seed(seed))
    held, rest = order.tensor_split([max(1, int(HELD_OUT * len(order)))])
    if len(train.y[rest].unique()) < 2:
        return 1.0
    part, check = FeatureSet(train.x[rest], train.y[rest]), FeatureSet(train.x[held], train.y[held])
    scores, model = [], None
    for strength in STRENGTHS:  # from the strongest penalty on, each from where the last one ended
        model = fit(part, strength, device, model)
        scores.append(model.accuracy(check))
    return STRENGTHS[int(np.argmax(scores))]


def probe_accuracy(train: FeatureSet, val: FeatureSet, seed: int, device: torch.device) -> tuple[float, float]:
    """(top-1 accuracy in per cent, the chosen C) of a linear probe on all labels; the penalty never sees `val`."""
    train, val = train.labelled(), val.labelled()
    strength = choose_strength(train, seed, device)
    return fit_and_score(train, val, strength, device), strength


def fewshot_accuracy(
    train: FeatureSet, val: FeatureSet, shots: int, draws: int, seed: int, device: torch.device
) -> tuple[float, float]:
    """Mean and standard deviation, in per cent, over draws of `shots` labels per class; C = 1 for want of labels."""
    train, val = train.labelled(), val.labelled()
    scores = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        rows = torch.cat([_some(train.y == c, shots, int(c), generator) for c in train.y.unique()])
        scores.append(fit_and_score(FeatureSet(train.x[rows], train.y[rows]), val, 1.0, device))
    return float(np.mean(scores)), float(np.std(scores))


def _some(mask: Tensor, shots: int, label: int, generator: torch.Generator) -> Tensor:
    rows = mask.nonzero().flatten()
    if len(rows) < shots:
        raise UserError(f"--shots {shots} needs as many images of each class; class {label} has {len(rows)}; lower it")
    return rows[torch.randperm(len(rows), generator=generator)[:shots]]
