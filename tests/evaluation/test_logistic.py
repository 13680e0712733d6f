"""Tests of logistic regression on features: scikit-learn's optimum, the choice of the penalty, few labels."""

import itertools
from argparse import Namespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from evaluation.features import FeatureSet
from evaluation.logistic import (
    PENALTIES_C,
    FewshotSettings,
    LogisticSettings,
    _objective,
    choose_penalty,
    chosen_on,
    fewshot,
    fewshot_accuracy,
    fewshot_settings,
    fit,
    fit_and_score,
    logistic,
    logistic_score,
)
from evaluation.settings import TrainingLabels, balanced_rows
from tests.helpers.evaluation import CPU, Pixels, blobs, target_of
from utils.errors import UserError


@pytest.mark.parametrize("c", [1e-4, 0.1, 100])
def test_fit_is_the_optimum_of_scikit_learn(monkeypatch, c):
    """To the optimum, in float64: both stop early by default, where the loss is flat."""
    monkeypatch.setattr("evaluation.logistic.GRADIENT", 1e-9)
    train, val = (FeatureSet(f.x.double() * 3 + 5, f.y) for f in (blobs(300), blobs(100, seed=1)))
    scaler = StandardScaler().fit(train.x)
    model = LogisticRegression(C=c, max_iter=5000, tol=1e-10).fit(scaler.transform(train.x), train.y)
    ours = fit(train, c, CPU)
    np.testing.assert_allclose(ours.weight.T, model.coef_, atol=1e-4)
    found = (((val.x - ours.mean) / ours.std) @ ours.weight + ours.bias).softmax(dim=1)
    np.testing.assert_allclose(found, model.predict_proba(scaler.transform(val.x)), atol=2e-5)
    assert ours.score(val) == pytest.approx(100 * model.score(scaler.transform(val.x), val.y))


def test_fit_does_not_depend_on_chunks_start_or_missing_classes():
    train, val = blobs(300), blobs(100, seed=1)
    whole, y = fit(train, 0.1, CPU), train.y
    w = torch.cat([whole.weight, whole.bias[None]])
    x = (train.x - whole.mean) / whole.std
    once, gradient = _objective(w, x, y, 0.1)
    in_parts, gradient_in_parts = _objective(w, x, y, 0.1, at_once=50)
    assert in_parts.item() == pytest.approx(once.item(), rel=1e-6)
    torch.testing.assert_close(gradient_in_parts, gradient, rtol=0, atol=1e-6)
    assert gradient.abs().max() < 1e-4, "the optimum has no gradient"
    warm = fit(train, 0.1, CPU, start=fit(train, 100, CPU))
    torch.testing.assert_close(warm.weight, whole.weight, rtol=0, atol=1e-3)
    few = FeatureSet(train.x[y != 1], y[y != 1])
    assert fit(few, 0.1, CPU).classes.tolist() == [0, 2]
    assert fit(few, 0.1, CPU).score(FeatureSet(val.x, torch.ones_like(val.y))) == 0
    with pytest.raises(UserError, match="all 100 labelled training images are of one class"):
        fit(FeatureSet(train.x[y == 1], y[y == 1]), 0.1, CPU)


def test_correlated_features_take_few_steps_to_the_same_optimum(monkeypatch):
    generator, calls = torch.Generator().manual_seed(0), []
    y = torch.arange(600) % 3
    means = 0.1 * torch.randn(3, 100, generator=generator)
    walks = (torch.randn(600, 100, generator=generator) + means[y]).cumsum(dim=1)  # neighbours are alike, as pixels are
    train = FeatureSet(walks, y)
    fits = {}
    for name in ("curvature", "identity"):
        calls.clear()
        monkeypatch.setattr("evaluation.logistic._objective", lambda *args: calls.append(1) or _objective(*args))
        if name == "identity":
            monkeypatch.setattr("evaluation.logistic._curvature_factor", lambda *args: None)
        fits[name] = fit(train, 10.0, CPU), len(calls)
    assert fits["curvature"][1] < fits["identity"][1] / 5
    found, plain = ((train.x - f.mean) / f.std @ f.weight + f.bias for f, _ in fits.values())
    torch.testing.assert_close(found.softmax(dim=1), plain.softmax(dim=1), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("enough", "fits"), [(40, 1), (41, 5)])
def test_curvature_is_computed_once_for_all_penalties_of_rows(monkeypatch, enough, fits):
    calls = []
    monkeypatch.setattr("evaluation.logistic._curvature", lambda *args: calls.append(1))
    monkeypatch.setattr("evaluation.logistic.ENOUGH", enough)
    choose_penalty(blobs(200), 0, CPU)
    assert len(calls) == fits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("enough", [40, 200, 201])
def test_penalty_is_the_best_by_accuracy_on_a_fifth_or_by_log_loss_in_five_folds(monkeypatch, seed, enough):
    """By scikit-learn, one fit after another. Features are noise but for a little, so that folds disagree."""
    monkeypatch.setattr("evaluation.logistic.ENOUGH", enough)
    train = blobs(200, seed=seed)
    train = FeatureSet(train.x / 4 + torch.randn(train.x.shape, generator=torch.Generator().manual_seed(seed)), train.y)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(seed)).numpy()
    score = np.zeros(len(PENALTIES_C))
    for fold in range(1 if enough == 40 else 5):
        held, rest = order[40 * fold : 40 * fold + 40], np.delete(order, range(40 * fold, 40 * fold + 40))
        x = StandardScaler().fit(train.x[rest]).transform(train.x)
        for i, c in enumerate(PENALTIES_C):
            model = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(x[rest], train.y[rest])
            p = model.predict_proba(x[held])
            score[i] += (
                np.log(p[range(40), train.y[held]]).sum()
                if enough == 201
                else (p.argmax(1) == train.y[held].numpy()).sum()
            )
    assert choose_penalty(train, seed, CPU) == PENALTIES_C[score.argmax()]


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0, 0, 1], [0, 1] * 4])
def test_penalty_of_a_handful_of_rows(labels):
    train = FeatureSet(torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0)), torch.tensor(labels))
    assert choose_penalty(train, 0, CPU) in PENALTIES_C


def test_coordinates_that_are_copies_of_others_do_not_stop_a_fit():
    train = blobs(300)
    twice = FeatureSet(torch.cat([train.x, train.x, torch.ones(len(train.x), 1)], dim=1), train.y)
    assert fit(twice, 100, CPU).score(twice) == pytest.approx(fit(train, 100, CPU).score(train), abs=1)


def test_logistic_score_chooses_the_penalty_without_the_validation_images():
    train, val = blobs(300), blobs(100, seed=1)
    accuracy, c = logistic_score(train, val, 0, CPU)
    assert c in PENALTIES_C
    assert accuracy == fit_and_score(train, val, c, CPU)
    assert logistic_score(train, FeatureSet(val.x, val.y.roll(1)), 0, CPU)[1] == c


def test_few_labels_choose_a_penalty_about_as_good_as_the_best(monkeypatch):
    """On digits, 50 labels: the accuracy on ten of them, one fold, costs four points in the mean."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(digits.data).float()[order], torch.from_numpy(digits.target)[order]
    draws, val = (
        [FeatureSet(x[at : at + 50], y[at : at + 50]) for at in range(0, 300, 50)],
        FeatureSet(x[300:], y[300:]),
    )

    def lost() -> float:
        best = [max(fit_and_score(rows, val, c, CPU) for c in PENALTIES_C) for rows in draws]
        return float(np.mean(best) - np.mean([logistic_score(rows, val, 0, CPU)[0] for rows in draws]))

    assert lost() < 1
    monkeypatch.setattr("evaluation.logistic.ENOUGH", 0)
    assert lost() > 2


def test_few_rows_of_several_labels_choose_a_penalty_by_the_log_loss_of_every_class():
    """By scikit-learn, one regression for each class against the rest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 4, generator=generator)
    y = (x @ torch.randn(4, 3, generator=generator) / 2 + torch.randn(100, 3, generator=generator) > 0).float()
    order, losses = torch.randperm(100, generator=torch.Generator().manual_seed(5)).numpy(), np.zeros(len(PENALTIES_C))
    for held in np.split(order, 5):
        rest = np.setdiff1d(order, held)
        scaled = StandardScaler().fit(x[rest]).transform(x)
        for (i, c), column in itertools.product(enumerate(PENALTIES_C), y.T.numpy()):
            model = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(scaled[rest], column[rest])
            losses[i] += log_loss(column[held], model.predict_proba(scaled[held]), normalize=False)
    assert choose_penalty(FeatureSet(x, y), 5, CPU) == PENALTIES_C[losses.argmin()]
    model = fit(FeatureSet(x, y), 0.1, CPU)
    expected = sum(
        log_loss(y[:, k], LogisticRegression(C=0.1, tol=1e-8).fit(StandardScaler().fit_transform(x), y[:, k])
                 .predict_proba(StandardScaler().fit_transform(x)), normalize=False) for k in range(3)
    )  # fmt: skip
    assert model.log_loss(FeatureSet(x, y)) == pytest.approx(expected, rel=1e-3)


def test_log_loss_leaves_out_images_of_classes_that_training_lacked():
    train, val = blobs(300), blobs(100, seed=1)
    known = FeatureSet(train.x[train.y != 1], train.y[train.y != 1])
    model, kept = fit(known, 0.1, CPU), val.y != 1
    assert model.log_loss(val) == pytest.approx(model.log_loss(FeatureSet(val.x[kept], val.y[kept])))
    assert model.log_loss(FeatureSet(val.x[~kept], val.y[~kept])) == 0


@pytest.mark.parametrize(
    ("rows", "text"),
    [(999, "five folds, by log-loss"), (1000, "five folds"), (4995, "five folds"), (4996, "a held-out fifth")],
)
def test_images_of_the_choice_depend_on_how_many_there_are(rows, text):
    """4,996 rows are split in 1,000 and 3,996."""
    assert text in chosen_on(rows)
    assert ("log-loss" in chosen_on(rows)) == (rows < 1000)
    assert (len(torch.arange(rows).tensor_split(5)[0]) >= 1000) == ("fifth" in text)


def test_fewshot_accuracy_draws_equally_from_each_class(monkeypatch):
    drawn = []

    def remember(train, val, c, device):
        drawn.append(train.y)
        return 0.0

    monkeypatch.setattr("evaluation.logistic.fit_and_score", remember)
    fewshot_accuracy(blobs(unknown=3), blobs(seed=1), shots=4, draws=3, seed=0, device=CPU)
    assert [torch.bincount(y).tolist() for y in drawn] == [[4, 4, 4]] * 3
    with pytest.raises(UserError, match="--shots 30 needs as many images of each class; class 0 has 20"):
        fewshot_accuracy(blobs(), blobs(), shots=30, draws=1, seed=0, device=CPU)


def test_logistic_stores_the_penalty_beside_the_score(tmp_path):
    target = target_of(Pixels(), tmp_path, images=200)
    (score,) = logistic(target, LogisticSettings())
    accuracy, c = logistic_score(target.train, target.val, 0, CPU)
    assert (score.name, score.value, score.chosen) == ("logistic", accuracy, {"penalty_c": c})
    assert score.chosen_on == chosen_on(200) != chosen_on(5000)
    assert score.numbers() == {"logistic": accuracy}


def test_fewshot_gives_mean_and_deviation_of_each_number_of_shots(tmp_path):
    target = target_of(Pixels(), tmp_path, images=200)
    scores = fewshot(target, FewshotSettings((1, 4), 2))
    assert [(score.name, score.labelled_images) for score in scores] == [("fewshot_1", 10), ("fewshot_4", 40)]
    expected = fewshot_accuracy(target.train, target.val, 4, 2, 0, CPU)
    assert (scores[1].value, scores[1].deviation) == expected


def test_fewshot_settings_are_what_the_smallest_class_allows():
    labels, notes = TrainingLabels(50, 36, 2, 6), []
    assert fewshot_settings(Namespace(shots=None, draws=3), labels, notes.append) == FewshotSettings((1, 2, 4), 3)
    assert notes == ["--shots 8 16 left out: there are 6 images in the smallest class"]
    with pytest.raises(UserError, match="--shots 7 exceeds the 6 images in the smallest class; lower it"):
        fewshot_settings(Namespace(shots=[7], draws=3), labels, notes.append)


def test_logistic_trains_on_each_fraction_of_the_labels(tmp_path):
    target = target_of(Pixels(), tmp_path, images=200)
    half, whole = logistic(target, LogisticSettings((0.5, 1.0)))
    rows = balanced_rows(target.train.y, 0.5, target.seed)
    assert len(rows) == pytest.approx(100, abs=5)
    part = FeatureSet(target.train.x[rows], target.train.y[rows])
    assert (half.name, whole.name) == ("logistic_50pct", "logistic")
    assert half.value == logistic_score(part, target.val, target.seed, CPU)[0]
    assert whole.value == logistic_score(target.train, target.val, target.seed, CPU)[0]
