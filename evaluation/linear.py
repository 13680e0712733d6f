"""Linear probes on features that were extracted once."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation.features import Features
from utils.errors import UserError

STRENGTHS = np.logspace(-4, 2, 7)  # scikit-learn's C, the inverse of the L2 penalty
ITERATIONS = 1000
HELD_OUT = 0.2  # of the training rows, to choose the penalty on


def fit_and_score(train: Features, val: Features, strength: float) -> float:
    """Accuracy in per cent on `val` of multinomial logistic regression on standardized features of `train`."""
    scaler = StandardScaler().fit(train.x.numpy())
    model = LogisticRegression(C=strength, max_iter=ITERATIONS)
    with warnings.catch_warnings():  # the weakest penalties on separable data may stop at the limit, near the optimum
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(train.x.numpy()), train.y.numpy())
    return 100 * float(model.score(scaler.transform(val.x.numpy()), val.y.numpy()))


def choose_strength(train: Features, seed: int) -> float:
    """The C that does best on a fifth of the training rows, held out; the strongest penalty among equals."""
    order = torch.randperm(len(train.x), generator=torch.Generator().manual_seed(seed))
    held, rest = order.tensor_split([max(1, int(HELD_OUT * len(order)))])
    if len(train.y[rest].unique()) < 2:
        return 1.0
    part, check = Features(train.x[rest], train.y[rest]), Features(train.x[held], train.y[held])
    scores = [fit_and_score(part, check, c) for c in STRENGTHS]
    return float(STRENGTHS[int(np.argmax(scores))])


def probe_accuracy(train: Features, val: Features, seed: int) -> tuple[float, float]:
    """(top-1 accuracy in per cent, the chosen C) of a linear probe on all labels; the penalty never sees `val`."""
    train, val = train.labelled(), val.labelled()
    strength = choose_strength(train, seed)
    return fit_and_score(train, val, strength), strength


def fewshot_accuracy(train: Features, val: Features, shots: int, draws: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation, in per cent, over draws of `shots` labels per class; C = 1 for want of labels."""
    train, val = train.labelled(), val.labelled()
    scores = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        rows = torch.cat([_some(train.y == c, shots, int(c), generator) for c in train.y.unique()])
        scores.append(fit_and_score(Features(train.x[rows], train.y[rows]), val, 1.0))
    return float(np.mean(scores)), float(np.std(scores))


def _some(mask: torch.Tensor, shots: int, label: int, generator: torch.Generator) -> torch.Tensor:
    rows = mask.nonzero().flatten()
    if len(rows) < shots:
        raise UserError(f"--shots {shots} needs as many images of each class; class {label} has {len(rows)}; lower it")
    return rows[torch.randperm(len(rows), generator=generator)[:shots]]
