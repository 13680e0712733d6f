"""Masks of patches: their numbers, shapes and addresses; features of masked views."""

from argparse import Namespace

import pytest
import timm
import torch
from torch.testing import assert_close

from utils.errors import UserError
from utils.masked_views import SMALLEST_BLOCK, PatchMask, check_masks, draw_masks, masked_features


def masks(n=400, grid=(6, 7), ratio=(0.1, 0.5), share=1.0, shape="random", index=None, views=1, seed=0, epoch=1):
    args = Namespace(mask_ratios=ratio, mask_probability=share, mask_shape=shape)
    view = torch.zeros(n, 3, 4 * grid[0], 4 * grid[1])
    return draw_masks(args, torch.arange(n) if index is None else index, [view] * views, 4, seed, torch.tensor(epoch))


@pytest.mark.parametrize("shape", ["block", "random"])
def test_masks_have_the_drawn_number_of_patches(shape):
    m = masks(shape=shape, share=0.5)
    count = m.mask.sum(dim=1)
    assert m.mask.shape == (400, 42)
    assert m.positions.shape == m.weights.shape == (400, 21)
    assert count.max() <= 21
    masked = count > 0
    assert 0.4 < masked.float().mean() < 0.6
    assert count[masked].min() == 4, "floor(0.1 * 42)"
    assert 0.27 < count[masked].float().mean() / 42 < 0.32, "a ratio of 0.3, rounded down, on average"


@pytest.mark.parametrize("shape", ["block", "random"])
def test_positions_and_weights_describe_the_mask(shape):
    m = masks(shape=shape, share=0.5)
    for mask, positions, weights in zip(*(x.tolist() for x in m), strict=True):
        chosen = {p for p, w in zip(positions, weights, strict=True) if w}
        assert chosen == {i for i, hidden in enumerate(mask) if hidden}
        assert len(set(positions)) == len(positions)
        assert sum(weights) == pytest.approx(1.0 if chosen else 0.0, abs=1e-6)
        assert not chosen or max(weights) == pytest.approx(1 / len(chosen))


def test_random_masks_hide_each_patch_equally_often():
    share = masks(n=4000).mask.float().mean(dim=0)
    assert (share - share.mean()).abs().max() < 0.05


def neighbours(mask, grid):
    """Share of the masked patches' right and lower neighbours that are masked too."""
    mask = mask.view(-1, *grid).float()
    both = (mask[:, 1:] * mask[:, :-1]).sum() + (mask[:, :, 1:] * mask[:, :, :-1]).sum()
    return both / (mask[:, :-1].sum() + mask[:, :, :-1].sum())


def test_block_masks_are_more_compact_than_random_ones():
    blocks, single = (neighbours(masks(grid=(14, 14), shape=shape).mask, (14, 14)) for shape in ("block", "random"))
    assert 0.25 < single < 0.4, "about the ratio"
    assert blocks > 0.65


def test_smallest_mask_is_one_rectangle():
    """At a ratio of SMALLEST_BLOCK patches, the first rectangle, of about as many, holds the mask."""
    m = masks(grid=(8, 8), ratio=(SMALLEST_BLOCK / 64, SMALLEST_BLOCK / 64), shape="block").mask.view(-1, 8, 8)
    assert (m.sum(dim=(1, 2)) == SMALLEST_BLOCK).all()
    rows, columns = m.any(dim=2).sum(dim=1), m.any(dim=1).sum(dim=1)
    assert (rows <= 4).all()
    assert (columns <= 4).all()
    assert (rows * columns <= 8).float().mean() > 0.7


@pytest.mark.parametrize("shape", ["block", "random"])
def test_masks_depend_on_seed_epoch_view_and_image_and_on_nothing_else(shape):
    first = masks(shape=shape).mask
    both = masks(shape=shape, views=2).mask
    assert torch.equal(first, both[:400])
    for other in (both[400:], masks(shape=shape, seed=1).mask, masks(shape=shape, epoch=2).mask):
        assert (first != other).any(dim=1).float().mean() > 0.9
    some = torch.tensor([17, 3, 399])
    assert torch.equal(masks(shape=shape, index=some).mask, first[some]), "an image has its mask in any batch"


def test_a_grid_with_fewer_patches_than_the_ratio_has_no_mask():
    m = masks(grid=(1, 1))
    assert not m.mask.any()
    assert not m.weights.any()
    assert m.positions.shape == (400, 1)


def test_wrong_order_of_ratios_is_an_error():
    with pytest.raises(UserError, match=r"^--mask_ratios 0.5 0.1: .* swap them$"):
        check_masks(Namespace(mask_ratios=[0.5, 0.1]))


def network(**options):
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=16, patch_size=4, depth=2, **options)


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"reg_tokens": 2}])
def test_masked_features_without_a_mask_are_those_of_the_networks(options):
    student, teacher = network(**options, dynamic_img_size=True), network(**options)
    for p in teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    views = [torch.randn(3, 3, s, s) for s in (16, 16, 8)]
    none = PatchMask(torch.zeros(6, 16, dtype=torch.bool), torch.zeros(6, 8, dtype=torch.long), torch.zeros(6, 8))
    feats = masked_features(student, teacher, views, 2, none, torch.full((64,), 9.0))
    for ours, view in zip([*feats.large, *feats.small], views, strict=True):
        assert_close(ours, student(view))
    for ours, view in zip(feats.evaluated, views, strict=False):
        assert_close(ours, teacher(view))
        assert not ours.requires_grad
    assert feats.patches.shape == feats.targets.shape == (6, 16, 64)
    tokens = student.forward_features(views[1])[:, student.num_prefix_tokens :]
    assert_close(feats.patches[3:], tokens)
    assert feats.mask.positions.shape == (6, 8)


def test_masked_patches_do_not_reach_the_student():
    student, teacher = network(), network()
    hidden = masks(n=3, grid=(4, 4), ratio=(0.5, 0.5))
    token = torch.randn(64, requires_grad=True)
    view = torch.randn(3, 3, 16, 16)
    at_pixels = hidden.mask.view(3, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    changed = torch.where(at_pixels, torch.randn_like(view), view)
    before, after = (masked_features(student, teacher, [v], 1, hidden, token) for v in (view, changed))
    assert_close(before.patches, after.patches)
    assert_close(before.large[0], after.large[0])
    assert not torch.allclose(before.targets, after.targets), "the teacher sees the whole view"
    before.large[0].sum().backward()
    assert token.grad.abs().sum() > 0
