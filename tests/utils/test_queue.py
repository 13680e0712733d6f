"""The queue: first in, first out, for any size and any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from utils.queue import FeatureQueue


def rows(n, start=0, d=3):
    """n distinct unit vectors, numbered from start."""
    angle = torch.arange(start, start + n, dtype=torch.float32) * 0.01
    return torch.stack([angle.cos(), angle.sin(), torch.zeros(n)], dim=1)[:, :d]


@given(size=st.integers(1, 30), batches=st.lists(st.integers(1, 40), max_size=8))
@settings(max_examples=60, deadline=None)
def test_flush_keeps_the_last_rows_for_any_batch_size(size, batches):
    queue, sent = FeatureQueue(size, 3, seed=0), torch.empty(0, 3)
    start = queue.rows.clone()
    for n in batches:
        z = rows(n, len(sent))
        queue.push(z, torch.arange(len(sent), len(sent) + n))
        queue.after_optimizer_step()
        sent = torch.cat([sent, z])
    kept = sent[-size:]
    pointer = int(queue.pointer)
    in_order = torch.cat([queue.rows[pointer:], queue.rows[:pointer]])
    assert_close(in_order[size - len(kept) :], kept)
    if len(sent) < size:
        assert_close(queue.rows[len(sent) :], start[len(sent) :])
    labels = torch.cat([queue.labels[pointer:], queue.labels[:pointer]])[size - len(kept) :]
    assert labels.tolist() == list(range(len(sent) - len(kept), len(sent)))
    assert queue.metrics()["queue_fill"].item() == pytest.approx(min(1.0, len(sent) / size))


def test_initial_rows_are_unit_vectors_that_depend_on_the_seed():
    a, b, c = FeatureQueue(50, 8, 1), FeatureQueue(50, 8, 1), FeatureQueue(50, 8, 2)
    assert_close(a.rows.norm(dim=1), torch.ones(50))
    assert torch.equal(a.rows, b.rows)
    assert not torch.equal(a.rows, c.rows)


def test_push_waits_for_flush_and_counts_as_one_batch():
    one, two = FeatureQueue(10, 3, 0), FeatureQueue(10, 3, 0)
    z, y = rows(4), torch.arange(4)
    start = one.rows.clone()
    one.push(z[:2], y[:2])
    assert torch.equal(one.rows, start)
    one.push(z[2:], y[2:])
    one.after_optimizer_step()
    two.push(z, y)
    two.after_optimizer_step()
    for k, v in two.state_dict().items():
        assert torch.equal(one.state_dict()[k], v), k


def test_age_counts_flushes():
    queue = FeatureQueue(6, 3, 0)
    for i in range(3):
        queue.push(rows(2, 2 * i), torch.zeros(2, dtype=torch.long))
        queue.after_optimizer_step()
    assert queue.age.tolist() == [2, 2, 1, 1, 0, 0]
    assert queue.metrics()["queue_age"].item() == 1


@pytest.mark.parametrize("max_similarities", [1, 50, 2**26])
def test_nearest_is_the_largest_cosine(max_similarities):
    queue = FeatureQueue(40, 5, 3).double()
    z = F.normalize(torch.randn(7, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)), dim=1)
    index, similarity = queue.nearest(z, max_similarities)
    for i in range(7):
        cosines = [float(z[i] @ row) for row in queue.rows]
        assert index[i] == max(range(40), key=cosines.__getitem__)
        assert similarity[i].item() == pytest.approx(max(cosines), abs=1e-12)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("max_similarities", [1, 50, 2**26])
def test_rows_with_the_label_of_the_query_come_first(k, max_similarities):
    """Class 0 has many rows, 7 has one, 8 none, and a query without a label has no preference."""
    queue = FeatureQueue(40, 5, 3).double()
    queue.labels[:30] = torch.arange(30) % 3
    queue.labels[33] = 7
    z = F.normalize(torch.randn(5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 2, 7, 8, -1])
    index, cosine = queue.nearest_several(z, k, max_similarities, labels)
    for i, label in enumerate(labels.tolist()):
        cosines = [float(z[i] @ row) for row in queue.rows]
        others = [label >= 0 and found != label for found in queue.labels.tolist()]
        expected = sorted(range(40), key=lambda j: (others[j], -cosines[j]))[:k]
        assert index[i].tolist() == expected
        assert cosine[i].tolist() == pytest.approx([cosines[j] for j in expected], abs=1e-12)


def test_look_ups_are_copies_and_the_state_dict_is_complete():
    queue = FeatureQueue(4, 3, 0)
    found = queue.rows[queue.nearest(rows(2))[0]]
    before = found.clone()
    queue.push(rows(4, 50), torch.arange(4))
    queue.after_optimizer_step()
    assert torch.equal(found, before)
    again = FeatureQueue(4, 3, 9)
    again.load_state_dict(queue.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), queue.buffers(), strict=True))


def test_push_detaches_gradients():
    queue, z = FeatureQueue(4, 3, 0), rows(2).requires_grad_()
    queue.push(z * 1.0, torch.zeros(2, dtype=torch.long))
    queue.after_optimizer_step()
    assert not queue.rows.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_flush_keeps_the_old_row_where_the_new_one_is_not_finite(bad):
    queue = FeatureQueue(6, 3, 0)
    for first in (0, 6):
        queue.push(rows(6, first), torch.arange(first, first + 6))
        queue.after_optimizer_step()
    z = rows(4, 12)
    z[1, 2] = bad
    queue.push(z, torch.arange(12, 16))
    queue.after_optimizer_step()
    assert torch.equal(queue.rows, torch.cat([z[:1], rows(1, 7), z[2:], rows(2, 10)]))
    assert queue.labels.tolist() == [12, 7, 14, 15, 10, 11]
    assert queue.age.tolist() == [0, 1, 0, 0, 1, 1]
    assert queue.pointer == 4, "the same on every rank, whatever the rows are"


def test_discard_forgets_the_pending_rows():
    queue = FeatureQueue(4, 3, 0)
    before = {k: v.clone() for k, v in queue.state_dict().items()}
    queue.push(rows(2), torch.arange(2))
    queue.discard()
    queue.after_optimizer_step()
    for k, v in queue.state_dict().items():
        assert torch.equal(before[k], v), k


@pytest.mark.parametrize("max_similarities", [1, 50, 2**26])
def test_nearest_several_are_the_largest_cosines_in_order(max_similarities):
    queue = FeatureQueue(40, 5, 3).double()
    z = F.normalize(torch.randn(7, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)), dim=1)
    for k in (1, 3, 40):
        index, similarity = queue.nearest_several(z, k, max_similarities)
        for i in range(7):
            cosines = [float(z[i] @ row) for row in queue.rows]
            assert index[i].tolist() == sorted(range(40), key=cosines.__getitem__, reverse=True)[:k]
            assert similarity[i].tolist() == pytest.approx(sorted(cosines, reverse=True)[:k], abs=1e-12)
