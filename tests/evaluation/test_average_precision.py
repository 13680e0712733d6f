"""Mean average precision of images with several labels, against loops in float64."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation.average_precision import mean_average_precision
from evaluation.features import FeatureSet
from evaluation.knn import knn_map
from evaluation.logistic import fit, logistic_score
from tests.helpers.evaluation import CPU


def several(n, seed, classes=3, d=6):
    """Random features of images that each have one class or two."""
    g = torch.Generator().manual_seed(seed)
    member = torch.rand(n, classes, generator=g) < 0.3
    member[torch.arange(n), torch.arange(n) % classes] = True
    return FeatureSet(torch.randn(n, d, generator=g) + member.float() @ torch.eye(classes, d), member)


def naive_average_precision(scores, has):
    """sum_t (R_t - R_before) P_t over all thresholds t, from the largest on; R recall, P precision of scores >= t."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [own for score, own in zip(scores, has, strict=True) if score >= threshold]
        recall, precision = sum(taken) / sum(has), sum(taken) / len(taken)
        total, before = total + (recall - before) * precision, recall
    return total


def naive_map(scores, member):
    return 100 * np.mean([naive_average_precision(s, m) for s, m in zip(zip(*scores), zip(*member)) if any(m)])  # noqa: B905


def naive_knn_scores(train, val, k):
    rows = []
    for x in val.x.double():
        cosines = [float(x @ other / x.norm() / other.norm()) for other in train.x.double()]
        near = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        weights = [np.exp(cosines[i] / 0.07) for i in near]
        rows.append([
            sum(w for i, w in zip(near, weights, strict=True) if train.y[i, c]) / sum(weights)
            for c in range(train.y.shape[1])
        ])  # fmt: skip
    return rows


def test_known_values():
    member = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0]]).bool()
    perfect, worst = member.float(), 1 - member.float()
    assert mean_average_precision(perfect, member) == pytest.approx(100)
    assert mean_average_precision(torch.zeros(3, 3), member) == pytest.approx(100 * 2 / 3), "all tied: the share"
    assert mean_average_precision(worst, member) == pytest.approx(100 * 2 / 3), "at the second threshold all are taken"
    assert mean_average_precision(torch.tensor([[3.0], [2.0], [1.0]]), member[:, :1]) == pytest.approx(100 * 5 / 6)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_knn_map_agrees_with_loops(k):
    train, val = several(40, 0), several(17, 1)
    val.y[:, 2] = False  # a class that no validation image has
    expected = naive_map(naive_knn_scores(train, val, k), val.y.tolist())
    assert knn_map(train, val, [k])[k] == pytest.approx(expected, abs=1e-6)


def test_logistic_regression_of_several_labels_is_one_for_each_class():
    train, val = several(60, 2), several(30, 3)
    scaler = StandardScaler().fit(train.x.double().numpy())
    x, unseen = (scaler.transform(part.x.double().numpy()) for part in (train, val))
    models = [LogisticRegression(C=0.5, tol=1e-8).fit(x, train.y[:, c].numpy()) for c in range(3)]
    ours = fit(train, 0.5, CPU)
    expected = np.stack([model.coef_[0] for model in models], axis=1)
    np.testing.assert_allclose(ours.weight.numpy(), expected, atol=1e-3)
    scores = np.stack([model.decision_function(unseen) for model in models], axis=1)
    assert ours.score(val) == pytest.approx(naive_map(scores.tolist(), val.y.tolist()), abs=0.5)


def test_penalty_is_chosen_without_the_validation_images():
    train, val = several(80, 4), several(30, 5)
    value, c = logistic_score(train, val, 0, CPU)
    assert value == fit(train, c, CPU).score(val)
    assert logistic_score(train, FeatureSet(val.x, val.y.roll(1, dims=0)), 0, CPU)[1] == c
