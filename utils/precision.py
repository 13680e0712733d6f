"""Guards against half precision where it overflows or cancels."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run the function outside of autocast: a bf16 cosine, divided by the temperature, is wrong in its second digit."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return wrapped


def at_least_float32(x: Tensor) -> Tensor:
    """Convert a half-precision tensor to float32; float32 and float64 tensors are returned unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_normalize(z: Tensor) -> Tensor:
    """Scale vectors (..., D) to unit length, in float32 or wider."""
    return F.normalize(at_least_float32(z), dim=-1)
