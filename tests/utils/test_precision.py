"""Guards against half precision."""

import pytest
import torch
from torch.testing import assert_close

from utils.precision import at_least_float32, full_precision, l2_normalize


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
