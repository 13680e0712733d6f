"""Losses whose similarities are computed in chunks of rows, against the same losses on the full matrix."""

import pytest
import torch
from torch.testing import assert_close

from methods.nnclr import nnclr_loss
from methods.simclr import nt_xent, supcon
from tests.helpers.memory import PeakMemory
from tests.helpers.networks import random_views
from utils import row_chunks
from utils.nt_xent import decoupled_nt_xent
from utils.precision import l2_normalize
from utils.row_chunks import map_row_chunks

LABELS = torch.tensor([0, 1, -1, 1, 0, -1, 2])


def info_nce(views):
    rows = l2_normalize(random_views(1, 30, 5, seed=1)[0])
    index = [(torch.arange(len(views[0])) * step) % 30 for step in (3, 7)]
    return nnclr_loss(rows, index, [l2_normalize(v) for v in views], 0.2)


LOSSES = {
    "nt_xent": lambda views: nt_xent(views, 0.2)["loss"],
    "supcon": lambda views: supcon(views, LABELS.repeat(len(views[0]) // 7 + 1)[: len(views[0])], 0.2)["loss"],
    "decoupled": lambda views: decoupled_nt_xent(views, 0.2, 0.5)["loss"],
    "info_nce": info_nce,
}


def loss_and_gradients(loss, views):
    views = [v.detach().requires_grad_() for v in views]
    value = loss(views)
    return [value.detach(), *torch.autograd.grad(value, views)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_loss_and_gradients_in_chunks_are_those_of_the_full_matrix(name, v, rows, monkeypatch):
    """7 images: the last chunk is smaller than the others, and chunks cut through the views of an image."""
    views = random_views(v, 7, 5)
    full = loss_and_gradients(LOSSES[name], views)
    columns = 4 * 7 * (v - 1) if name == "info_nce" else 7 * v  # InfoNCE: 4 (v - 1) terms
    monkeypatch.setattr(row_chunks, "MAX_ENTRIES", rows * columns + 1)
    for part, expected in zip(loss_and_gradients(LOSSES[name], views), full, strict=True):
        assert_close(part, expected, rtol=1e-13, atol=1e-13)


def _chunked_part(rank, world, name, max_entries):
    """Loss and gradients of this rank's share of 14 images, of which four are on this rank in chunks of few rows."""
    before, row_chunks.MAX_ENTRIES = row_chunks.MAX_ENTRIES, max_entries
    try:
        views = [v.chunk(world)[rank] for v in random_views(2, 14, 5)]
        return loss_and_gradients(LOSSES[name], views)
    finally:
        row_chunks.MAX_ENTRIES = before


@pytest.mark.parametrize("name", ["nt_xent", "supcon", "decoupled"])
def test_chunks_of_two_processes_are_the_full_matrix_of_one(name, ranks):
    full = loss_and_gradients(LOSSES[name], random_views(2, 14, 5))
    parts = ranks(2).run(_chunked_part, name, 80)  # two rows of 28 columns, and one left over
    assert_close(torch.stack([loss for loss, *_ in parts]).mean(), full[0], rtol=1e-12, atol=1e-12)
    for view in (1, 2):  # the gradient of the mean over ranks of their losses
        gradient = torch.cat([part[view] for part in parts]) / 2
        assert_close(gradient, full[view], rtol=1e-12, atol=1e-12)


def test_small_matrices_are_computed_once_and_large_ones_again_in_the_backward_pass(monkeypatch):
    calls = []

    def double(x):
        calls.append(len(x))
        return (2 * x.exp(),)

    x = torch.ones(6, 1, requires_grad=True)
    for limit, forward, backward in ((60, [6], []), (59, [5, 1], [1, 5]), (1, [1] * 6, [1] * 6)):
        monkeypatch.setattr(row_chunks, "MAX_ENTRIES", limit)
        calls.clear()
        (y,) = map_row_chunks(double, 10, x)
        assert calls == forward
        y.sum().backward()
        assert calls[len(forward) :] == backward


@pytest.mark.parametrize("name", LOSSES)
def test_memory_of_forward_and_backward_is_bounded(name, monkeypatch):
    """The similarities are 2**20 numbers, 8 MiB in float64, in the four terms of InfoNCE together; a chunk has 1/16."""
    views = random_views(2, 512, 5)
    peaks = {}
    for limit in (2**20, 2**16):
        monkeypatch.setattr(row_chunks, "MAX_ENTRIES", limit)
        with PeakMemory() as memory:
            loss_and_gradients(LOSSES[name], views)
        peaks[limit] = memory.peak
    assert peaks[2**20] > 2**23, "the whole matrix, and more"
    assert peaks[2**16] < 7 * 2**19 + 2**20, "a few chunks, and the embeddings"
