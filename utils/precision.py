"""Guards against half precision where it overflows or cancels."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError

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


def refuse_wrong_bf16_gradients(network: nn.Module, sizes: Sequence[int], precision: str, accelerator: str) -> None:
    """Refuse views so small that torch computes wrong gradients of convolutions in bf16 on a CPU.

    Where most of a kernel lies beyond the image, as 3 x 3 with stride 2 on a single pixel, the gradient of the weights
    in bf16 (oneDNN, seen in torch 2.14.1) is read from memory that nobody wrote: finite or not, it is wrong.
    sizes: sides of the views in pixels.
    """
    if accelerator != "cpu" or not precision.startswith("bf16"):
        return
    for size in sizes:
        if name := _convolution_beyond_the_image(network, size):
            raise UserError(
                f"views of {size} px leave the convolution {name} of the backbone with fewer pixels than half of its "
                f"kernel, and its gradient in bf16 on a CPU would be wrong; add --precision 32, or take larger views"
            )


def _convolution_beyond_the_image(network: nn.Module, size: int) -> str | None:
    """The first convolution whose input, for images of `size` pixels, is smaller than half of its kernel."""
    found: list[str] = []

    def look(name: str, module: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
        kernel, stride, depthwise = max(module.kernel_size), max(module.stride), module.groups == module.in_channels
        if 2 * min(inputs[0].shape[-2:]) < kernel and not depthwise and (kernel > 3 or stride > 1):
            found.append(name)

    training, parameter = network.training, next(network.parameters())
    handles = [
        module.register_forward_pre_hook(functools.partial(look, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            network.eval()(parameter.new_zeros(1, 3, size, size))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return found[0] if found else None
