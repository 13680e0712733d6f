"""Tests of shares of rows: every row in one share, its bits on every rank, sums of integers."""

import contextlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import shares
from utils.shares import RowsInMemory, fetch, gather_rows, part_count, parts, share, slices, unit_of_sums

CPU = torch.device("cpu")


@contextlib.contextmanager
def small_parts(coordinates):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "PART", coordinates)
        yield


@given(st.integers(0, 200), st.integers(1, 70))
def test_shares_are_consecutive_and_as_large(count, ranks):
    each = [share(count, number, ranks) for number in range(ranks)]
    assert [number for numbers in each for number in numbers] == list(range(count))
    assert max(map(len, each)) - min(map(len, each)) <= 1


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 40), st.integers(1, 60))
def test_slices_hold_every_row_once_and_do_not_cross_parts(n, d, part, coordinates):
    x = torch.arange(n * d).view(n, d).float()
    with small_parts(part):
        found = list(slices(x, coordinates))
        rows = max(1, part // d)
        assert part_count(x) == math.ceil(n / rows)
        assert torch.equal(torch.cat([x[:0], *parts(x, CPU)]), x)
    assert [i for at in found for i in range(at.start, at.stop)] == list(range(n))
    assert all(at.start // rows == (at.stop - 1) // rows for at in found)
    assert all((at.stop - at.start) * d <= max(coordinates, d) for at in found)


@given(st.just(0.0) | st.floats(2.0**-149, 1e38))  # magnitudes of float32
def test_sums_within_the_bound_fit_in_62_bits(bound):
    unit = unit_of_sums(bound)
    assert math.frexp(unit)[0] == 0.5, "a power of two"
    assert bound / unit <= 2**62


def rows_on_a_rank(rank, world, x, at):
    with small_parts(6):
        local = torch.cat([torch.empty(0, dtype=torch.long), *(part[:, 0].long() for part in parts(x, CPU))])
        kept = RowsInMemory(x, CPU)
        read = torch.cat([torch.empty(0, 2), *parts(kept, CPU)])
        found = [fetch(rows, at, CPU).view(torch.int32).tolist() for rows in (x, kept)]
        return gather_rows(local, x, CPU).tolist(), found, len(kept.kept), read[:, 0].long().tolist() == local.tolist()


@pytest.mark.parametrize(("n", "world"), [(23, 2), (23, 3), (5, 3), (2, 3)])
def test_rows_of_any_rank_come_with_their_bits_and_in_order(ranks, n, world):
    x = torch.stack([torch.arange(n).float(), -torch.zeros(n)], dim=1)
    at = torch.tensor([n - 1, 0, 1, n - 1])
    results = ranks(world).run(rows_on_a_rank, x, at)
    for gathered, found, _, same in results:
        assert gathered == list(range(n))
        assert found == [x[at].view(torch.int32).tolist()] * 2, "also -0.0"
        assert same
    assert sum(kept for _, _, kept, _ in results) == n, "each rank keeps its share alone"
