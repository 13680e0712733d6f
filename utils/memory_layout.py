"""The forms in which layers are fastest on a device: convolutions channels last, attention fused or plain."""

import torch
from torch import Tensor, nn


def channels_last(x: Tensor) -> Tensor:
    """Convert images (N, 3, H, W) to channels last; on Apple's GPU they stay as they are."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


def fastest_layers(module: nn.Module, accelerator: str, precision: str) -> None:
    """Prepare the layers of a network that is trained, in place: on CUDA its convolutions, on CPU its attention.

    On a CPU the backward pass of fused attention takes most of a step in bf16, so there timm's attention computes
    softmax(q k^T) as a matrix: 1.3 to 2.6 times as fast a step with 65 to 1,025 tokens, for more memory. In float32 it
    stays as it is.
    """
    convolutions_channels_last(module, accelerator)
    if accelerator == "cpu" and precision == "bf16-mixed":
        for layer in module.modules():
            if hasattr(layer, "fused_attn"):
                layer.fused_attn = False  # type: ignore[assignment]


def convolutions_channels_last(module: nn.Module, accelerator: str) -> None:
    """Convert the weights of all convolutions for "cuda", in place: else each call converts them, and their gradients.

    On a CPU and on Apple's GPU they stay as they are.
    """
    for convolution in (m for m in module.modules() if accelerator == "cuda" and isinstance(m, nn.Conv2d)):
        convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
