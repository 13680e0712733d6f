"""Blocks of I-JEPA against their definition, written as loops over patches, and what they must never be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.block_masks import TARGET_ASPECT, BlockSampler
from utils.errors import UserError
from utils.masked_tokens import MASKS
from utils.random import uniform

PAPER = (4, (0.15, 0.2), (0.85, 1.0))
EPOCH = torch.tensor(3)


def naive_rectangle(numbers, scale, aspect, grid, most):
    """The set of patches of one rectangle."""
    rows, columns = grid
    area = (scale[0] + numbers[0] * (scale[1] - scale[0])) * rows * columns
    ratio = aspect[0] + numbers[1] * (aspect[1] - aspect[0])
    height = min(max(1, round(math.sqrt(area * ratio))), rows, most)
    width = min(max(1, round(math.sqrt(area / ratio))), columns, most // height)
    top, left = math.floor(numbers[2] * (rows - height + 1)), math.floor(numbers[3] * (columns - width + 1))
    return {r * columns + c for r in range(top, top + height) for c in range(left, left + width)}


def naive_blocks(sampler, seed, epoch, image):
    """(context, targets) of one image as sets of patches, from the numbers of its address."""
    rows, columns = sampler.grid
    numbers = [[float(uniform(seed, MASKS, epoch, image, b, i)) for i in range(4)] for b in range(sampler.blocks + 1)]
    targets = [naive_rectangle(n, sampler.target_scale, TARGET_ASPECT, sampler.grid, sampler.max_target)
               for n in numbers[:-1]]  # fmt: skip
    context = naive_rectangle(numbers[-1], sampler.context_scale, (1, 1), sampler.grid, rows * columns)
    return context - set().union(*targets), targets


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (14, 14), (5, 9)])
def test_blocks_are_those_of_the_definition(grid):
    sampler = BlockSampler(grid, *PAPER)
    images = torch.arange(20)
    blocks = sampler.draw(1, EPOCH, images)
    assert blocks.context.shape == (20, sampler.context_patches)
    assert blocks.targets.shape == blocks.distinct.shape == (20, 4, sampler.max_target)
    for i in images.tolist():
        context, targets = naive_blocks(sampler, 1, 3, i)
        assert set(blocks.context[i].tolist()) <= context
        assert len(set(blocks.context[i].tolist())) == min(len(context), sampler.context_patches)
        for found, distinct, target in zip(blocks.targets[i], blocks.distinct[i], targets, strict=True):
            assert set(found.tolist()) == target
            assert found[distinct].tolist() == sorted(target), "each patch counts once"


@given(
    rows=st.integers(2, 16), columns=st.integers(2, 16), blocks=st.integers(1, 5), seed=st.integers(0, 2**31),
    low=st.floats(0.05, 0.3), more=st.floats(0, 0.1),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_every_grid_has_a_context_apart_from_the_targets_or_is_refused(rows, columns, blocks, seed, low, more):
    try:
        sampler = BlockSampler((rows, columns), blocks, (low, low + more), (0.85, 1.0))
    except UserError:
        assert blocks * (low + more) >= 0.85 or rows * columns < 2 * blocks + 2 or min(rows, columns) * 4 < max(
            rows, columns
        ), "only where targets could cover the context"  # fmt: skip
        return
    drawn = sampler.draw(seed, EPOCH, torch.arange(50))
    assert sampler.context_patches >= 1
    for context, targets in zip(drawn.context, drawn.targets, strict=True):
        assert not set(context.tolist()) & set(targets.flatten().tolist())
    for places in (drawn.context, drawn.targets):
        assert 0 <= places.min() <= places.max() < rows * columns


def test_blocks_depend_on_seed_epoch_and_image_alone():
    sampler = BlockSampler((8, 8), *PAPER)
    whole = sampler.draw(0, EPOCH, torch.arange(20))
    part = sampler.draw(0, EPOCH, torch.tensor([7, 3]))
    for name in ("context", "targets", "distinct"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[7, 3]])
    for other in (sampler.draw(1, EPOCH, torch.arange(20)), sampler.draw(0, EPOCH + 1, torch.arange(20))):
        assert (other.targets != whole.targets).any(dim=(1, 2)).float().mean() > 0.9


def test_blocks_of_the_paper_have_its_sizes_and_reach_every_patch():
    sampler = BlockSampler((14, 14), *PAPER)
    assert sampler.max_target == 40, "a fifth of 196 patches"
    blocks = sampler.draw(0, EPOCH, torch.arange(3000))
    sizes = blocks.distinct.sum(dim=-1).double()
    assert 0.16 < sizes.mean() / 196 < 0.185
    assert sizes.min() / 196 > 0.12
    covered = torch.zeros(196).index_add_(0, blocks.targets[blocks.distinct], torch.ones(int(sizes.sum())))
    assert (covered > 0).all(), "the last row and column too"
    whole = sampler.context_patches / 196
    assert 0.2 < whole < 0.35
    repeated = torch.tensor([len(set(c.tolist())) < sampler.context_patches for c in blocks.context])
    assert 0 < repeated.double().mean() < 0.03, "one image in a hundred has a smaller context"


@pytest.mark.parametrize(
    ("grid", "settings", "message"),
    [
        ((2, 2), PAPER, "2 x 2 patches has no room for 4"),
        ((8, 8), (4, (0.2, 0.1), (0.85, 1.0)), "target blocks of 0.2 to 0.1"),
        ((8, 8), (4, (0.15, 0.2), (1.0, 0.9)), "context blocks of 1 to 0.9"),
        ((8, 8), (5, (0.15, 0.2), (0.85, 1.0)), "5 target blocks of up to 0.2"),
    ],
)
def test_impossible_blocks_are_an_error(grid, settings, message):
    with pytest.raises(UserError, match=message):
        BlockSampler(grid, *settings)
