"""RotNet against its equations, and the order of its rotations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from methods.rotnet import rotate, rotation_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat
from utils.batch import Batch


def naive_rotation_loss(logits):
    """Eq. 3, one image and one rotation at a time."""
    n, total = len(logits) // 4, 0.0
    for i in range(n):
        for y in range(4):
            row = logits[y * n + i]
            total -= math.log(math.exp(row[y]) / sum(math.exp(x) for x in row)) / 4
    return torch.tensor(total / n, dtype=torch.double)


def draw(n, seed=0):
    return torch.randn(4 * n, 4, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_rotation_loss_agrees_with_the_formula(n):
    assert_close(rotation_loss(draw(n))["loss"], naive_rotation_loss(draw(n)), rtol=0, atol=1e-12)


def test_rotation_loss_of_a_uniform_and_of_a_perfect_prediction():
    assert rotation_loss(torch.zeros(8, 4))["loss"].item() == pytest.approx(math.log(4))
    known = rotation_loss(100 * torch.eye(4).repeat_interleave(2, dim=0))
    assert known["loss"] < 1e-6
    assert known["rotation_acc"] == 100


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_rotation_loss_ignores_order_of_images_and_level_of_logits_and_is_positive(seed, n):
    logits = draw(n, seed)
    loss = rotation_loss(logits)["loss"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(rotation_loss(logits.view(4, n, 4)[:, order].reshape(-1, 4))["loss"], loss)
    assert_close(rotation_loss(logits + 5)["loss"], loss)
    assert loss > 0


def test_rotation_loss_gradient_agrees_with_finite_differences():
    assert torch.autograd.gradcheck(lambda x: rotation_loss(x)["loss"], [draw(2).requires_grad_()])


def test_rotate_stacks_quarter_turns_in_blocks():
    view = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    turned = rotate(view)
    assert turned.shape == (8, 3, 4, 4)
    assert torch.equal(turned[:2], view)
    for turns in range(1, 4):
        assert torch.equal(turned[2 * turns : 2 * turns + 2], turned[2 * turns - 2 : 2 * turns].rot90(1, dims=(2, 3)))
    assert turned[2, 0, 0, 0] == view[0, 0, 0, 3], "counter-clockwise: the upper right corner comes to the upper left"


def test_backbone_sees_all_rotations_together_and_the_probe_the_upright_ones():
    torch.manual_seed(0)
    method = build_method("rotnet", Flat(12), 6, "--batch_size", "4")
    batch = Batch(torch.arange(4), [torch.randn(4, 3, 2, 2)], torch.arange(4))
    seen, probed = [], []
    method.backbone.register_forward_hook(lambda m, args, out: seen.append(out))
    method.probe.register_forward_hook(lambda m, args, out: probed.append(args[0]))
    out = method.compute_losses(batch)
    assert [len(x) for x in seen] == [16], "one batch, one batch norm"
    assert_close(probed[0], seen[0][:4].detach())
    assert_close(out["loss"], rotation_loss(method.head(seen[0]))["loss"])
