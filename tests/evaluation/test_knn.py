"""Tests of weighted nearest neighbours: a loop in float64, chunks, unknown labels."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from evaluation.knn import KnnSettings, knn, knn_accuracy, knn_settings, neighbours
from evaluation.settings import TrainingLabels
from tests.helpers.evaluation import Pixels, blobs, target_of
from utils.errors import UserError


def naive_knn(train, val, k, classes):
    right = 0
    for q, label in zip(val.x.double(), val.y, strict=True):
        cosines = [float(q @ t / (q.norm() * t.norm())) for t in train.x.double()]
        best = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = [sum(np.exp(cosines[i] / 0.07) for i in best if train.y[i] == c) for c in range(classes)]
        right += int(np.argmax(votes)) == int(label)
    return 100 * right / len(val.y)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_knn_accuracy_agrees_with_a_loop(k):
    train, val = blobs(), blobs(seed=1)
    assert knn_accuracy(train, val, [k], 3)[k] == pytest.approx(naive_knn(train, val, k, 3))


def test_neighbours_do_not_depend_on_chunks():
    train, val = blobs(), blobs(seed=1)
    whole, chunked = neighbours(train.x, val.x, 9), neighbours(train.x, val.x, 9, at_once=70)
    assert torch.equal(whole[1], chunked[1])


def test_knn_accuracy_ignores_unknown_labels_and_refuses_too_many_neighbours():
    train, val = blobs(unknown=20), blobs(seed=1, unknown=10)
    assert knn_accuracy(train, val, [5], 3) == knn_accuracy(train.labelled(), val.labelled(), [5], 3)
    with pytest.raises(UserError, match="k=41 exceeds the 40 labelled training images"):
        knn_accuracy(train, val, [41], 3)


def test_knn_accuracy_is_100_where_the_bank_holds_the_queries():
    assert knn_accuracy(blobs(), blobs(), [1], 3)[1] == 100


def test_knn_gives_a_score_for_each_k(tmp_path):
    target = target_of(Pixels(), tmp_path, images=200)
    scores = knn(target, KnnSettings((1, 5)))
    expected = knn_accuracy(target.train, target.val, [1, 5], 10)
    assert {score.name: score.value for score in scores} == {"knn_1": expected[1], "knn_5": expected[5]}
    assert knn(target, KnnSettings(())) == []


def test_knn_settings_are_what_the_labels_allow():
    labels, notes = TrainingLabels(50, 36, 2, 6), []
    assert knn_settings(Namespace(knn_k=None), labels, notes.append).k == (20,)
    assert notes == ["--knn_k 200 left out: there are 36 labelled training images"]
    assert knn_settings(Namespace(knn_k=[36]), labels, notes.append).k == (36,)
    with pytest.raises(UserError, match="--knn_k 37 exceeds the 36 labelled training images; lower it"):
        knn_settings(Namespace(knn_k=[20, 37]), labels, notes.append)
