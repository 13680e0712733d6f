"""The memory bank: rows of the images that were seen, after the optimizer step, on any number of ranks."""

import pytest
import torch

from utils.memory_bank import MemoryBank


def draw(n, seed=0):
    """Two views' embeddings (n, 3)."""
    return list(torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed)))


def test_rows_enter_after_the_step_at_the_positions_of_their_images():
    bank, z = MemoryBank(5, 2, 3), draw(2)
    bank.push(torch.tensor([3, 0]), z)
    assert not bank.rows.any()
    bank.after_optimizer_step()
    for view in range(2):
        assert torch.equal(bank.rows[view, 3], z[view][0])
        assert torch.equal(bank.rows[view, 0], z[view][1])
        assert not bank.rows[view, [1, 2, 4]].any()
    before = bank.rows.clone()
    bank.after_optimizer_step()
    assert torch.equal(bank.rows, before), "nothing is pending"


def test_accumulated_batches_enter_together_and_the_last_row_of_an_image_stays():
    bank, first, second = MemoryBank(4, 2, 3), draw(2), draw(2, seed=1)
    bank.push(torch.tensor([0, 1]), first)
    bank.push(torch.tensor([1, 2]), second)
    bank.after_optimizer_step()
    expected = [torch.stack([a[0], b[0], b[1], torch.zeros(3)]) for a, b in zip(first, second, strict=True)]
    assert torch.equal(bank.rows, torch.stack(expected))


def test_rows_of_a_skipped_step_are_forgotten_and_rows_that_are_not_finite_change_nothing():
    bank, z = MemoryBank(4, 2, 3), draw(2)
    bank.push(torch.tensor([0, 1]), z)
    bank.discard()
    bank.after_optimizer_step()
    assert not bank.rows.any()
    z[1][0, 2] = torch.nan
    bank.push(torch.tensor([0, 1]), z)
    bank.after_optimizer_step()
    assert torch.equal(bank.rows[0, :2], z[0])
    assert not bank.rows[1, 0].any()
    assert torch.equal(bank.rows[1, 1], z[1][1])


def test_rows_carry_no_gradient_and_are_in_the_state():
    bank, z = MemoryBank(2, 2, 3), draw(2)
    bank.push(torch.arange(2), [x.requires_grad_() for x in z])
    bank.after_optimizer_step()
    assert not bank.rows.requires_grad
    assert list(bank.state_dict()) == ["rows"]


def push_on_a_rank(rank, world, z):
    bank, own = MemoryBank(6, 2, 3), slice(rank * 6 // world, (rank + 1) * 6 // world)
    bank.push(torch.tensor([5, 1, 0, 2, 4, 3])[own], [x[own] for x in z])
    bank.after_optimizer_step()
    return bank.rows


@pytest.mark.parametrize("world", [2, 3])
def test_the_bank_is_equal_on_all_ranks(ranks, world):
    z = draw(6)
    expected = push_on_a_rank(0, 1, z)
    assert all(torch.equal(rows, expected) for rows in ranks(world).run(push_on_a_rank, z))
