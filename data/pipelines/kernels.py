"""Which executor makes views on a device, and in which precision: for the pipelines that finish views on a GPU."""

from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from data import augment_torch
from data.augment_torch import Statistic, Views

DTYPES = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # precision -> of views


def augment_views(views: Sequence[Views], mean: Statistic, std: Statistic, dtype: torch.dtype) -> list[Tensor]:
    """(N, 3, S, S) for each of `views`, on the device of their pixels, normalized, of type `dtype`, channels last."""
    executor = triton_kernels(views[0].pixels.device) or augment_torch
    made: list[Tensor] = executor.augment_views(views, mean, std, dtype)
    return made


def triton_kernels(device: torch.device) -> ModuleType | None:
    """`data.augment_triton` for a CUDA device where Triton is installed and compiles; None: the batched executor."""
    if device.type != "cuda" or torch.version.hip or find_spec("triton") is None:
        return None
    from data import augment_triton

    return augment_triton if augment_triton.compiles() else None
