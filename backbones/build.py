"""Backbones by name: torchvision ResNets and timm networks without their classifiers."""

import contextlib
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from utils.batch import LOW_RES
from utils.errors import UserError, did_you_mean
from utils.plan import BackboneConfig
from utils.vision_transformer import (
    SUITABLE,
    embed_patches,
    has_drop_path,
    is_vision_transformer,
    pool_tokens,
    require_vision_transformer,
    run_last_blocks,
    with_prefix,
)

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
               "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")  # fmt: skip


def build_backbone(
    config: BackboneConfig, size: int, small_size: int | None = None, *, tokens_for: str | None = None
) -> tuple[nn.Module, int]:
    """Build a randomly initialized network without classifier and return (network, width D of its features).

    The network maps (N, 3, size, size), and views of small_size if there are any, to (N, D).
    config.name: a torchvision ResNet, also with a factor of its channels (`resnet50x2`), else any timm model name.
    config.stem: "small" replaces the first layers of a ResNet by a 3x3 convolution without max-pool (SimCLR, app. B.9);
    "imagenet" keeps them.
    config.zero_init_residual: see `zero_init_residual`. config.patch_size, .drop_path and .pool: see `BackboneConfig`.
    tokens_for: name of a method that needs a vision transformer, for the error if the network is another one.
    """
    name = config.name
    views = {"--large_size": size} | ({} if small_size is None else {"--small_size": small_size})
    if config.patch_size:
        _check_patch_size(config, views)
    network = _resnet(name) or _timm(config, size, mixed_sizes=small_size is not None)
    if tokens_for:  # first: the pooling of tokens may be its default
        require_vision_transformer(network, tokens_for)
    _check_options(network, config, views)
    if config.zero_init_residual:
        zero_init_residual(network)
    if config.stem == "small":
        _replace_stem(network, name)
    if small_size is not None:
        _feature_width(network, name, small_size, "--small_size")
    return network, _feature_width(network, name, size, "--large_size")


def zero_init_residual(network: nn.Module) -> None:
    """Set the scale of the last norm of each residual block to zero, as torchvision's zero_init_residual=True does.

    Residual networks of timm name that norm themselves (`zero_init_last` of a block). Most of them start with zeros
    anyway, like timm's ResNets; without this call they keep timm's initialization. Networks without such blocks (ViT,
    ConvNeXt) stay as they are. No random numbers are drawn.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    for block in network.modules():
        if isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)
        elif isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
        elif callable(zero_init_last := getattr(block, "zero_init_last", None)):
            zero_init_last()


def _replace_stem(network: nn.Module, name: str) -> None:
    """Replace the 7x7 convolution of a ResNet by a 3x3 one with stride 1, and its max-pool by nothing."""
    if not has_imagenet_stem(network):
        raise UserError(f"--stem small replaces the 7x7 stem of a ResNet, which {name} does not have; omit --stem")
    channels = int(network.state_dict()["conv1.weight"].shape[0])
    conv = nn.Conv2d(3, channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = conv, nn.Identity()


def has_imagenet_stem(network: nn.Module) -> bool:
    """Return True if the network starts with one 7x7 convolution and a max-pool, as the ResNets of both libraries."""
    conv = getattr(network, "conv1", None)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7) and hasattr(network, "maxpool")


def choose_stem(requested: str, backbone: str, size: int, seen: str | None = None) -> tuple[str, str]:
    """Resolve --stem to ("small" or "imagenet", reason).

    requested: "auto" takes the small stem for views up to LOW_RES pixels, if the network has a 7x7 stem to replace.
    seen: stem of the weights that the network will be filled with; for "auto" it decides.
    """
    if requested != "auto":
        return requested, "from the flag"
    if size > LOW_RES and seen is None:
        return "imagenet", f"views of {size} pixels"
    if not has_imagenet_stem(_on_meta(backbone)):
        return "imagenet", f"{backbone} has no 7x7 stem to replace"
    if seen is not None:
        return seen, "stem of the weights"
    return "small", f"3x3 without max-pool for views of {size} pixels; --stem imagenet keeps the 7x7 stem"


class IntermediateFeatures(nn.Module):
    """Output of one block of a network, averaged over positions: (N, 3, H, W) -> (N, D).

    For a network that ends in average pooling, as ResNets do, the last block gives the network's own features.
    """

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        if name not in (names := block_names(network)):
            hint = did_you_mean(name, names)
            raise UserError(f"--layer {name}: the backbone has no such block{hint}; choose one of {', '.join(names)}")
        self.network, self.name = network, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        block = self.network.get_submodule(self.name)
        hook = block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            self.network(x)
        finally:
            hook.remove()
        (out,) = outputs
        # (N, T, D) of transformers, (N, H, W, D) of some timm networks; else (N, D, H, W)
        tokens = out.ndim == 3 or getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return out.flatten(1, -2).mean(dim=1) if tokens else out.flatten(2).mean(dim=2)


class LastBlocks(nn.Module):
    """Features of the last blocks of a vision transformer side by side: (N, 3, H, W) -> (N, count * D).

    The class token after each block, or the average of the other tokens where the network averages, each after the
    final norm: DINO's linear evaluation (Caron et al., 2021, arXiv:2104.14294, app. F.2) takes four blocks.
    """

    def __init__(self, network: nn.Module, count: int):
        super().__init__()
        if not is_vision_transformer(network):
            raise UserError(
                f"--last_blocks {count}: the backbone is a {type(network).__name__}, whose blocks have no class token; "
                f"remove it, or take {SUITABLE}"
            )
        if count > (depth := len(network.blocks)):  # type: ignore[arg-type]
            raise UserError(f"--last_blocks {count}: the backbone has {depth} blocks; lower it to {depth} or less")
        self.network, self.count = network, count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        network = cast("VisionTransformer", self.network)
        tokens = with_prefix(network, embed_patches(network, x))
        return torch.cat([pool_tokens(network, out) for out in run_last_blocks(network, tokens, self.count)], dim=1)


def at_layer(network: nn.Module, name: str | None, last_blocks: int | None = None) -> nn.Module:
    """Return the network, or its features after the block of a name (see `block_names`), or its `LastBlocks`."""
    if last_blocks:
        return LastBlocks(network, last_blocks)
    return IntermediateFeatures(network, name) if name else network


def part_name(layer: str | None, last_blocks: int | None, pool: str | None) -> str | None:
    """Describe which of the backbone's features were asked for, as text for files of features; None: its own."""
    parts = [f"last {last_blocks} blocks" if last_blocks else layer, f"pool {pool}" if pool else None]
    return ", ".join(part for part in parts if part) or None


def block_names(network: nn.Module) -> list[str]:
    """List the blocks of a network, first to last: timm's feature_info, or layer1 to layer4 of torchvision ResNets."""
    from_timm = [info["module"] for info in getattr(network, "feature_info", [])]
    names = from_timm or [name for name, _ in network.named_children() if name.startswith("layer")]
    return [name for name in names if name in dict(network.named_modules())]


def first_line(e: BaseException) -> str:
    """Return the first line of an error message, or the name of its type where it has none."""
    return next(iter(str(e).splitlines()), type(e).__name__)


def _resnet(name: str) -> nn.Module | None:
    """Build a ResNet of torchvision, also with a factor of its channels (`resnet50x2`); None for other names."""
    if name in TORCHVISION:
        import torchvision

        network: nn.Module = torchvision.models.get_model(name, weights=None)
        network.fc = nn.Identity()
        return network
    from backbones.scaled_resnet import ScaledResNet, scaled_name  # it imports torchvision

    scaled = scaled_name(name)
    return ScaledResNet(scaled) if scaled else None


def _timm(config: BackboneConfig, size: int, mixed_sizes: bool = False) -> nn.Module:
    """Build a timm network for views of `size` pixels.

    mixed_sizes: a transformer accepts other sizes too, by interpolation of its position embeddings. Arguments that the
    network does not take are left out; `_check_options` refuses those that the user asked for.
    """
    import timm

    _check_name(config.name)
    views: dict[str, Any] = {"img_size": size} | ({"dynamic_img_size": True} if mixed_sizes else {})
    requested: dict[str, Any] = {"patch_size": config.patch_size} if config.patch_size else {}
    requested |= {"drop_path_rate": config.drop_path} if config.drop_path else {}
    network: nn.Module
    for options in (views | requested, requested):  # convolutional networks take any size and none of these arguments
        with contextlib.suppress(TypeError):
            try:
                network = timm.create_model(config.name, pretrained=False, num_classes=0, **options)
            except (AssertionError, ValueError, RuntimeError) as e:
                reason = f"{config.name} cannot be built for views of {size} pixels ({first_line(e)})"
                raise UserError(f"{reason}; choose another --large_size") from e
            return network
    network = timm.create_model(config.name, pretrained=False, num_classes=0)
    return network


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, [*TORCHVISION, *timm.list_models()])
        raise UserError(
            f"unknown backbone {name!r}{hint}; choose a torchvision ResNet, also with a factor of its "
            f"channels (resnet50x2), or any timm model name"
        )


@functools.cache
def _on_meta(name: str) -> nn.Module:
    """Build the network as its library does, without memory for its weights; to look at, not to change."""
    import timm

    with torch.device("meta"):
        if (resnet := _resnet(name)) is not None:
            return resnet
        _check_name(name)
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return network


def _check_patch_size(config: BackboneConfig, views: Mapping[str, int]) -> None:
    """Refuse --patch_size for other networks than vision transformers, and where it does not divide the views."""
    if not is_vision_transformer(_on_meta(config.name)):
        raise UserError(
            f"--patch_size {config.patch_size}: {config.name} has no patches to choose; remove it, or take {SUITABLE}"
        )
    assert config.patch_size is not None
    _check_divisible(config.name, config.patch_size, views)


def _check_divisible(name: str, patch: int, views: Mapping[str, int]) -> None:
    """Refuse views that are not a whole number of patches: timm would leave out their last rows and columns.

    views: flag -> side in pixels.
    """
    for flag, size in views.items():
        if size % patch:
            divisors = [d for d in range(2, size + 1) if all(side % d == 0 for side in views.values())]
            advice = [f"--patch_size {min(divisors, key=lambda d: abs(d - patch))}"] if divisors else []
            multiples = [side for side in (size // patch * patch, (size // patch + 1) * patch) if side >= patch]
            advice.append(f"{flag} {' or '.join(map(str, multiples))}")
            raise UserError(
                f"{name} with patches of {patch} pixels: views of {size} pixels are not a whole number of them; take "
                f"{', or '.join(advice)}"
            )


def _check_options(network: nn.Module, config: BackboneConfig, views: Mapping[str, int]) -> None:
    """Refuse options that the network does not have, and give a vision transformer its pooling."""
    name, transformer = config.name, is_vision_transformer(network)
    if transformer:
        _check_divisible(name, int(network.patch_embed.patch_size[0]), views)  # type: ignore[index, union-attr]
    if config.drop_path and not has_drop_path(network):
        raise UserError(f"--drop_path {config.drop_path:g}: {name} has no drop path; remove it, or take {SUITABLE}")
    if config.pool and not transformer:
        raise UserError(f"--pool {config.pool}: {name} has no choice of pooling; remove it, or take {SUITABLE}")
    if config.pool:
        try:
            network.reset_classifier(0, config.pool)  # type: ignore[operator]
        except AssertionError as e:
            raise UserError(f"--pool {config.pool}: {name} has no class token; remove it, or take {SUITABLE}") from e


@torch.no_grad()
def _feature_width(network: nn.Module, name: str, size: int, flag: str) -> int:
    """Measure the width of the features by one forward pass: a network's `num_features` is not always its output."""
    training = network.training
    try:
        shape = network.eval()(torch.zeros(2, 3, size, size)).shape
    except (RuntimeError, AssertionError, ValueError) as e:
        reason = f"{name} cannot process views of {size} pixels ({first_line(e)})"
        raise UserError(f"{reason}; choose another {flag}") from e
    network.train(training)
    if len(shape) != 2:
        raise UserError(f"{name} returns features of shape {tuple(shape)}, not (N, D); choose a network with pooling")
    return int(shape[1])
