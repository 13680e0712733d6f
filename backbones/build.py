"""name -> (network without its classifier, width of its features)."""

import contextlib
from typing import Any

import torch
from torch import nn

from utils.errors import UserError, did_you_mean
from utils.plan import BackboneConfig

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
               "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")  # fmt: skip
SMALL = 64  # pixels: views up to this side get the 3x3 stem


def build_backbone(config: BackboneConfig, size: int, small_size: int | None = None) -> tuple[nn.Module, int]:
    """A randomly initialized network that maps (N, 3, size, size), and small views if there are any, to (N, D), and D.

    config.name: one of torchvision's ResNets, else any timm model name. config.stem: "small" is a 3x3 convolution
    without max-pool in place of the first layers of a ResNet (SimCLR, app. B.9), "imagenet" changes nothing.
    """
    name, stem = config.name, config.stem
    network = _torchvision(name) if name in TORCHVISION else _timm(name, size, several=small_size is not None)
    if config.zero_init_residual:
        zero_init_residual(network)
    if stem == "small":
        if not has_imagenet_stem(network):
            raise UserError(f"--stem small replaces the 7x7 stem of a ResNet, which {name} does not have; leave it out")
        channels = int(network.state_dict()["conv1.weight"].shape[0])
        conv = nn.Conv2d(3, channels, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        network.conv1, network.maxpool = conv, nn.Identity()
    if small_size is not None:
        _feature_width(network, name, small_size, "--small_size")
    return network, _feature_width(network, name, size, "--large_size")


def zero_init_residual(network: nn.Module) -> None:
    """Set the scale of the last norm of each residual block of a ResNet to zero; other networks have none."""
    for block in network.modules():
        last = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        if isinstance(last, nn.BatchNorm2d) and hasattr(block, "downsample"):
            nn.init.zeros_(last.weight)


def has_imagenet_stem(network: nn.Module) -> bool:
    """Whether the network starts with one 7x7 convolution and a max-pool, as the ResNets of both libraries do."""
    conv = getattr(network, "conv1", None)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7) and hasattr(network, "maxpool")


def choose_stem(wanted: str, name: str, size: int, seen: str | None = None) -> tuple[str, str]:
    """(stem, reason) for --stem auto: the 3x3 stem where views have at most 64 pixels and the network takes it.

    seen: the stem of weights that a ResNet is to be filled with, which decides.
    """
    if wanted != "auto":
        return wanted, "as given"
    if size > SMALL and seen is None:
        return "imagenet", f"views of {size} pixels"
    with torch.device("meta"):
        network = _torchvision(name) if name in TORCHVISION else _timm(name, size)
    if not has_imagenet_stem(network):
        return "imagenet", f"{name} has no 7x7 stem to replace"
    if seen is not None:
        return seen, "as in the weights"
    return "small", f"3x3 without max-pool, for views of {size} pixels; --stem imagenet keeps the ordinary one"


class IntermediateFeatures(nn.Module):
    """The average over positions of what a block of the network puts out: (N, 3, H, W) -> (N, D).

    The last block gives what the network itself gives where that ends in average pooling, as ResNets do.
    """

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        if name not in (known := block_names(network)):
            raise UserError(f"--layer {name}: no such block{did_you_mean(name, known)}; there are {', '.join(known)}")
        self.network, self.name = network, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = self.network.get_submodule(self.name).register_forward_hook(lambda module, inputs, out: seen.append(out))
        try:
            self.network(x)
        finally:
            hook.remove()
        (out,) = seen
        # (N, T, D) of transformers, (N, H, W, D) of some timm networks; else (N, D, H, W)
        tokens = out.ndim == 3 or getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return out.flatten(1, -2).mean(dim=1) if tokens else out.flatten(2).mean(dim=2)


def at_layer(network: nn.Module, name: str | None) -> nn.Module:
    """The network, or its features after the block that --layer names."""
    return IntermediateFeatures(network, name) if name else network


def block_names(network: nn.Module) -> list[str]:
    """The names of its blocks, first to last: of a timm network what it tells, of torchvision's ResNets four."""
    told = [info["module"] for info in getattr(network, "feature_info", [])]
    blocks = told or [name for name, _ in network.named_children() if name.startswith("layer")]
    return [name for name in blocks if name in dict(network.named_modules())]


def _torchvision(name: str) -> nn.Module:
    import torchvision

    network = torchvision.models.get_model(name, weights=None)
    network.fc = nn.Identity()
    return network


def _timm(name: str, size: int, several: bool = False) -> nn.Module:
    """`several`: a transformer takes views of other sizes than `size` too, its positions interpolated."""
    import timm

    if not timm.is_model(name):
        known = [*TORCHVISION, *timm.list_models()]
        raise UserError(f"unknown backbone {name!r}{did_you_mean(name, known)}; any timm name or torchvision ResNet")
    with contextlib.suppress(TypeError):  # convolutional networks take any size and none of these arguments
        more: dict[str, Any] = {"img_size": size, "dynamic_img_size": True} if several else {"img_size": size}
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **more)
        except (AssertionError, ValueError, RuntimeError) as e:
            reason = f"{name} cannot be built for views of {size} pixels ({e})"
            raise UserError(f"{reason}; choose another --large_size") from e
    return timm.create_model(name, pretrained=False, num_classes=0)


@torch.no_grad()
def _feature_width(network: nn.Module, name: str, size: int, flag: str) -> int:
    """Width of the features, by running the network once: what it says of itself is not always what it returns."""
    training = network.training
    try:
        shape = network.eval()(torch.zeros(2, 3, size, size)).shape
    except (RuntimeError, AssertionError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"{name} cannot see views of {size} pixels ({reason}); choose another {flag}") from e
    network.train(training)
    if len(shape) != 2:
        raise UserError(f"{name} returns features of shape {tuple(shape)}, not (N, D); choose a network with pooling")
    return shape[1]
