"""The memory layout in which convolutions are fastest: channels last, on CPU and CUDA."""

import torch
from torch import Tensor, nn


def channels_last(x: Tensor) -> Tensor:
    """Convert images (N, 3, H, W) to channels last; on Apple's GPU they stay as they are."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


def convolutions_channels_last(module: nn.Module, accelerator: str) -> None:
    """Convert the weights of all convolutions for "cuda", in place: else each call converts them, and their gradients.

    On a CPU and on Apple's GPU they stay as they are.
    """
    for convolution in (m for m in module.modules() if accelerator == "cuda" and isinstance(m, nn.Conv2d)):
        convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
