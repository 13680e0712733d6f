"""What must not be computed in half precision."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run the function outside of autocast: a bf16 cosine, divided by the temperature, is wrong in its second digit."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return wrapped


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_normalize(z: Tensor) -> Tensor:
    """(..., D) -> unit vectors, in float32 or wider."""
    return F.normalize(at_least_float32(z), dim=-1)
