"""The order of an epoch, its share among ranks, and unfinished batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.pipelines.loaders import (
    EpochBatchSampler,
    ResumableLoader,
    SequentialBatchSampler,
    UnfinishedBatch,
    without_flip,
)
from data.sampler import sample
from data.views import ViewSpec
from tests.helpers.pipelines import as_rank


@pytest.mark.parametrize("world", [2, 3])
def test_epoch_batch_sampler_shares_the_steps_of_one_process_among_ranks(world, monkeypatch):
    def order_of(batch_size):
        order = EpochBatchSampler(50, batch_size, seed=5)
        order.set_epoch(2)
        return [index for _, index in order]

    alone, parts = order_of(12), []
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        parts.append(order_of(12 // world))
    assert [sum(step, []) for step in zip(*parts, strict=True)] == alone


def test_unfinished_batch_pins_all_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x + 1)
    batch = UnfinishedBatch(torch.zeros(2), [torch.zeros(2)] * 2, torch.zeros(2), []).pin_memory()
    assert all(bool((tensor == 1).all()) for tensor in (batch.index, batch.labels, *batch.views))


def test_epoch_batch_sampler_deals_out_the_given_rows():
    rows = np.array([3, 5, 8, 13, 21])
    order = EpochBatchSampler(5, 2, seed=1, rows=rows)
    keys = list(order)
    assert [epoch for epoch, _ in keys] == [0, 0]
    assert len(order) == 2, "the incomplete last batch is left out"
    assert set(sum((index for _, index in keys), [])) <= set(rows.tolist())


def test_epoch_batch_sampler_starts_late_once():
    order = EpochBatchSampler(50, 10, seed=5)
    whole = list(order)
    order.start = 3
    assert list(order) == whole[3:]
    assert list(order) == whole


def test_sequential_batch_sampler_covers_every_image_once_over_ranks(monkeypatch):
    alone = list(SequentialBatchSampler(25, 10))
    assert alone == [(-1, list(range(10))), (-1, list(range(10, 20))), (-1, list(range(20, 25)))]
    parts = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        parts += list(SequentialBatchSampler(25, 10))
    assert sorted(parts) == alone


def test_unfinished_batch_moves_its_tensors_and_keeps_its_parameters():
    params = without_flip(sample(ViewSpec(8, flip=1.0), 0, 0, np.arange(2), 0, np.full((2, 2), 9)))
    assert not params.flip.any()
    batch = UnfinishedBatch(torch.arange(2), [torch.zeros(2, 3, 8, 8)], torch.zeros(2).long(), [params])
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.index, moved.labels, *moved.views)} == {"meta"}
    assert moved.color_params == [params]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError("gone")])
def test_resumable_loader_names_a_worker_that_is_killed_while_it_sends(monkeypatch, error):
    def batches(self):
        yield "first"
        raise error

    monkeypatch.setattr(ResumableLoader, "batches", batches)
    handed_out = iter(ResumableLoader(SimpleNamespace(), SequentialBatchSampler(4, 2)))
    assert next(handed_out) == "first"
    with pytest.raises(RuntimeError, match=r"a DataLoader worker \(pid unknown\) ended"):
        next(handed_out)
