"""Guards against half precision."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from utils.errors import UserError
from utils.precision import at_least_float32, full_precision, l2_normalize, refuse_wrong_bf16_gradients


def test_full_precision_leaves_autocast():
    a = torch.randn(4, 4)

    @full_precision
    def product(x, scale=1.0):
        return scale * (x @ x)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        assert_close(product(a, scale=2.0), 2 * product(a), rtol=0, atol=0)
        assert product(a).dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32),
     (torch.float64, torch.float64)],
)  # fmt: skip
def test_at_least_float32_widens_half_precision_only(given, expected):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == expected


def test_l2_normalize_of_half_precision_does_not_overflow():
    z = l2_normalize(torch.full((2, 3), 6e4, dtype=torch.float16))
    assert z.dtype == torch.float32
    assert_close(z.norm(dim=1), torch.ones(2))


def two_convolutions(kernel=3, stride=2, groups=1):
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, kernel, stride, kernel // 2, groups=groups), nn.BatchNorm2d(4)
    )


@pytest.mark.parametrize(
    ("network", "sizes", "precision", "accelerator", "refused"),
    [
        (two_convolutions(), (8, 2), "bf16-mixed", "cpu", True),
        (two_convolutions(), (8, 4), "bf16-mixed", "cpu", False),
        (two_convolutions(), (8, 2), "32", "cpu", False),
        (two_convolutions(), (8, 2), "bf16-mixed", "cuda", False),
        (two_convolutions(stride=1), (8, 2), "bf16-mixed", "cpu", False),
        (two_convolutions(kernel=7, stride=1), (4,), "bf16-mixed", "cpu", True),
        (two_convolutions(kernel=7, groups=4), (4,), "bf16-mixed", "cpu", False),
    ],
)
def test_refuse_wrong_bf16_gradients_of_kernels_beyond_the_image(network, sizes, precision, accelerator, refused):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if refused:
        with pytest.raises(UserError, match=r"views of \d px leave the convolution 1 .* add --precision 32"):
            refuse_wrong_bf16_gradients(network, sizes, precision, accelerator)
    else:
        refuse_wrong_bf16_gradients(network, sizes, precision, accelerator)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network[1]._forward_pre_hooks


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_that_are_not_refused_have_right_gradients_in_bf16(stride):
    """Memory that is freed full of NaN shows what is read without being written."""
    side = 1 if stride == 1 else 2
    x, weight = torch.randn(16, 64, side, side).bfloat16(), torch.randn(128, 64, 3, 3).bfloat16().requires_grad_()
    exact = weight.detach().double().requires_grad_()
    out = nn.functional.conv2d(x.double(), exact, None, stride, 1)
    (expected,) = torch.autograd.grad(out.sum(), exact)
    for _ in range(8):
        left = [torch.full((n,), torch.nan) for n in (1_000, 100_000, 1_000_000)]
        del left
        out = nn.functional.conv2d(x, weight, None, stride, 1)
        (gradient,) = torch.autograd.grad(out.sum(), weight)
        assert_close(gradient.double(), expected, rtol=0.05, atol=0.3)
