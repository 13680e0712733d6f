"""Tests of weighted nearest neighbours: a loop in float64, chunks, unknown labels."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import knn as module
from evaluation.knn import KnnSettings, _top, knn, knn_accuracy, knn_settings, neighbours
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


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_largest_entries_come_first_and_equal_ones_by_their_column(seed, columns, k):
    x = torch.randint(-2, 3, (6, columns), generator=torch.Generator().manual_seed(seed)).float()
    x[0] = 1
    expected = x.sort(dim=1, descending=True, stable=True)
    values, found = _top(x, min(k, columns))
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(found, expected.indices[:, :k])


def neighbours_on_a_rank(rank, world, bank, queries, k):
    """Neighbours, with blocks of which each rank has several, and predictions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 7)
        cosines, rows = neighbours(bank.x, queries.x, k, at_once=500, shared=True)
        accuracy = knn_accuracy(bank, queries, [1, k], 3, shared=True)
        return cosines.view(torch.int32).tolist(), rows.tolist(), accuracy


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("images", "k"), [(90, 9), (90, 60), (10, 9)], ids=["few", "more than a rank has", "one block"]
)
def test_neighbours_and_accuracy_are_those_of_one_process_on_any_number_of_ranks(ranks, world, images, k):
    bank, queries = blobs(images), blobs(40, seed=1)
    bank.x[images // 2 :] = bank.x[: images - images // 2]  # each image twice: equal cosines on two ranks
    one = neighbours_on_a_rank(0, 1, bank, queries, k)
    assert all(found == one for found in ranks(world).run(neighbours_on_a_rank, bank, queries, k))
    cosines, rows = torch.tensor(one[0]), torch.tensor(one[1])
    equal = cosines[:, 1:] == cosines[:, :-1]
    assert equal.sum() > 20
    assert (rows.diff(dim=1)[equal] > 0).all(), "equally near ones by their row"


def rows_searched_on_a_rank(rank, world, bank):
    """How many rows of the bank this rank compares with a query."""
    searched, search = [], module._search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 7)
        patch.setattr(
            module, "_search", lambda q, own, *more: searched.append(sum(map(len, own))) or search(q, own, *more)
        )
        neighbours(bank.x, bank.x, 3, shared=True)
    return searched


def test_each_rank_searches_its_share_of_the_bank(ranks):
    assert ranks(3).run(rows_searched_on_a_rank, blobs(90)) == [[28], [28], [34]]


def out_of_memory_on_a_rank(rank, world):
    bank = blobs(20)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(module, "_search", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            neighbours(bank.x, bank.x, 3, shared=True)


def test_an_error_of_one_rank_is_an_error_of_all_and_no_rank_waits(ranks):
    ranks(2).run(out_of_memory_on_a_rank)


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
