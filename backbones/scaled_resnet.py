"""ResNets whose channels are all multiplied by one factor: `resnet50x2` is the ResNet-50 (2x) of SimCLR."""

import re
from typing import Any, NamedTuple

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from utils.errors import UserError

NAME = re.compile(r"(resnet(?:18|34|50|101|152))x(\d+(?:\.\d+)?)")
LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
CHANNELS = 64  # of the first convolution of a ResNet


class ScaledName(NamedTuple):
    """A ResNet of torchvision by name, and the factor of its channels."""

    resnet: str
    factor: float


def scaled_name(name: str) -> ScaledName | None:
    """Read a name as `resnet18x0.25`; None for other names, a UserError for a factor that gives no whole channels."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    factor = float(match[2])
    if factor * CHANNELS < 1 or factor * CHANNELS % 1:
        raise UserError(
            f"backbone {name}: {match[2]} times {CHANNELS} channels is {factor * CHANNELS:g}, needs a whole number of "
            f"at least 1; take 0.25, 0.5, 2 or another multiple of 1/{CHANNELS}"
        )
    return ScaledName(match[1], factor)


class ScaledResNet(ResNet):
    """A torchvision ResNet without classifier, every layer of which has `factor` times the channels.

    (N, 3, H, W) -> (N, 512 * factor), or (N, 2048 * factor) with bottlenecks. Its tensors have torchvision's names.
    Chen et al., 2020 (SimCLR, arXiv:2002.05709), sec. 3 and app. B.9, train factors of 1, 2 and 4.
    """

    def __init__(self, name: ScaledName):
        block, layers = LAYERS[name.resnet]
        self.__dict__["factor"] = name.factor  # before torchvision's __init__, which builds the layers
        super().__init__(block, layers, num_classes=1)
        self.fc = nn.Identity()  # type: ignore[assignment]

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == CHANNELS:  # the first of the four
            self.inplanes = self._scaled(CHANNELS)
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        layers: nn.Sequential = super()._make_layer(block, self._scaled(planes), blocks, stride, dilate)
        return layers

    def _scaled(self, channels: int) -> int:
        return round(channels * float(self.factor))
