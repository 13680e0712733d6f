"""Neighbours as targets: what is found, what enters the queue and when, and the logged metrics."""

from argparse import Namespace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from tests.helpers.commands import plan_of
from tests.helpers.networks import random_views
from utils.errors import UserError
from utils.nearest_neighbours import build_queue, neighbour_metrics, replace_by_neighbours
from utils.queue import FeatureQueue


def test_replace_by_neighbours_looks_up_every_target_and_pushes_the_first_view():
    queue, targets = FeatureQueue(20, 5, seed=1).double(), random_views(2, 4, 5)
    rows, labels = queue.rows.clone(), torch.arange(4)
    neighbours, _ = replace_by_neighbours(queue, targets, labels, labelled=True)
    for target, neighbour in zip(targets, neighbours, strict=True):
        for i in range(4):
            cosines = [float(target[i] @ row / target[i].norm()) for row in rows]
            assert torch.equal(neighbour[i], rows[max(range(20), key=cosines.__getitem__)])
    assert torch.equal(queue.rows, rows), "the queue moves with the optimizer step"
    queue.after_optimizer_step()
    assert_close(queue.rows[:4], F.normalize(targets[0], dim=1))
    assert torch.equal(queue.rows[4:], rows[4:])
    assert queue.labels[:5].tolist() == [0, 1, 2, 3, -1]


def test_replace_by_neighbours_has_no_gradient_and_normalizes_in_float32():
    queue = FeatureQueue(20, 5, seed=1)
    targets = [z.bfloat16().requires_grad_() for z in random_views(2, 4, 5)]
    neighbours, metrics = replace_by_neighbours(queue, targets, torch.arange(4), labelled=True)
    assert not any(x.requires_grad for x in (*neighbours, *metrics.values()))
    assert all(z.dtype == torch.float32 for z in neighbours)


def test_neighbour_metrics_count_known_labels_and_different_rows():
    queue = FeatureQueue(10, 3, seed=0)
    queue.labels[:4] = torch.tensor([0, 1, 2, -1])
    index, cosines, labels = torch.tensor([0, 0, 1, 3]), torch.tensor([1.0, 0.5, 0.0, 0.5]), torch.tensor([0, 2, -1, 3])
    out = neighbour_metrics(queue, index, cosines, labels, labelled=True)
    assert out["nn_similarity"] == 0.5
    assert out["nn_distinct"] == 0.75, "rows 0, 1 and 3 for four queries"
    assert out["nn_label_acc"] == 50, "of the first two; the others' labels are unknown on one side"
    assert out["queue_fill"] == 0
    assert "nn_label_acc" not in neighbour_metrics(queue, index, cosines, labels, labelled=False)


def test_build_queue_refuses_one_that_a_step_would_fill_more_than_once():
    _, plan = plan_of("simclr", "--batch_size", "16", "--accumulate", "2")
    args = Namespace(queue_size=32, proj_dim=4)
    assert build_queue(args, plan, 4).rows.shape == (32, 4)
    with pytest.raises(UserError, match=r"--queue_size 32 is smaller than 64 embeddings of the global batch of 32"):
        build_queue(args, plan, 4, rows_per_image=2)
    args.queue_size = 31
    with pytest.raises(UserError, match=r"--queue_size 31 is smaller than the global batch of 32 images"):
        build_queue(args, plan, 4)
