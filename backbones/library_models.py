"""The models of torchvision and timm that have the tensors of a backbone."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backbones.build import TORCHVISION, first_line
from utils.errors import UserError, did_you_mean


def library_tensors(kind: str, network: nn.Module, card: Mapping[str, str], size: int) -> tuple[dict[str, Tensor], str]:
    """Return (all tensors of the library's own model, Python code that builds that model)."""
    name = card["backbone"]
    if card["stem"] == "small":
        raise UserError(
            f"the {name} of {kind} starts with a 7x7 convolution and a max-pool, which --stem small replaced, so it "
            f"cannot load these weights; export to onnx, or use the run's backbone.safetensors"
        )
    reference, constructor = _torchvision_model(name) if kind == "torchvision" else timm_constructor(card, size)
    tensors = {
        # In the plain layout, which safetensors needs: convolutions on a GPU are channels last.
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in network.state_dict().items()
    }
    if kind == "torchvision":
        tensors |= {k: torch.zeros(reference[k].shape) for k in ("fc.weight", "fc.bias")}
    different = [k for k in reference.keys() | tensors.keys() if _shape(reference, k) != _shape(tensors, k)]
    if different:
        raise UserError(
            f"the backbone is not {constructor}: {len(different)} tensors differ {sorted(different)[:3]}; name the "
            f"backbone and the size that it was built with, or export to onnx"
        )
    return tensors, constructor


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _torchvision_model(name: str) -> tuple[dict[str, Tensor], str]:
    """Return (state dict of torchvision's own model on the meta device, Python code that builds the model)."""
    import torchvision

    if name not in TORCHVISION:
        raise UserError(
            f"{name} is not one of torchvision's ResNets ({', '.join(TORCHVISION)}); export to timm or onnx"
        )
    with torch.device("meta"):
        reference = torchvision.models.get_model(name, weights=None, num_classes=1000).state_dict()
    return reference, f"torchvision.models.get_model({name!r}, weights=None, num_classes=1000)"


def timm_constructor(card: Mapping[str, str], size: int) -> tuple[dict[str, Tensor], str]:
    """Return (state dict of timm's own model on the meta device, Python code that builds the model)."""
    reference, options = timm_arguments(card, size)
    arguments = "".join(f", {option}={value}" for option, value in options.items())
    return reference, f"timm.create_model({card['backbone']!r}, num_classes=0{arguments})"


def timm_arguments(card: Mapping[str, str], size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (state dict of timm's own model on the meta device, arguments that the model is built with).

    A transformer is built for views of `size` pixels and the patches of the card, on which its tensors depend.
    """
    import timm

    name, patch = card["backbone"], card.get("patch_size", "None")
    options: dict[str, Any] = {"img_size": size} | ({} if patch == "None" else {"patch_size": int(patch)})
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name}{did_you_mean(name, timm.list_models())}; export to onnx")
    with torch.device("meta"):
        with contextlib.suppress(TypeError):  # convolutional networks take any size and no such argument
            try:
                return timm.create_model(name, num_classes=0, **options).state_dict(), options
            except (AssertionError, ValueError, RuntimeError) as e:
                reason = f"{name} cannot be built for views of {size} pixels ({first_line(e)})"
                raise UserError(f"{reason}; name the size that it was trained with") from e
        return timm.create_model(name, num_classes=0).state_dict(), {}
