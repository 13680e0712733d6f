"""View specifications: how the views of an image are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from utils.plan import ViewsConfig

T = TypeVar("T")

RATIO = (3 / 4, 4 / 3)  # aspect ratios of crops, width over height
SIGMA = (0.1, 2.0)  # of the blur kernel, in pixels (SimCLR, app. A)


@dataclass(frozen=True)
class ViewSpec:
    """Settings of one kind of view; probabilities in [0, 1], strengths as in torchvision's ColorJitter.

    The operations come in this order: crop of an area share within `scale`, resized to `size` pixels; flip; jitter
    of the four colour properties in random order; gray; blur; solarize.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0
    count: int = 1

    @property
    def blur_taps(self) -> int:
        """Odd width of the blur's kernel, a tenth of the view (SimCLR, app. A)."""
        return max(3, 2 * (self.size // 20) + 1)


def view_specs(config: ViewsConfig, large: int) -> list[ViewSpec]:
    """The `large` large views of --large_size and --crop_scale, then the small ones (SwAV, sec. 3.3).

    Settings have one value for all views, or each large view has its own (BYOL, app. B). Small views take these in
    turn, or the value after those of the large views.
    """

    def spec(number: int, size: int, scales: tuple[tuple[float, float], ...], small: bool) -> ViewSpec:
        def own(values: Sequence[T]) -> T:
            return values[large] if small and len(values) > large else values[number % len(values)]

        brightness, contrast, saturation, hue = own(config.jitter_strengths)
        return ViewSpec(
            size, scales[number % len(scales)], config.flip, own(config.jitter), brightness, contrast, saturation, hue,
            own(config.gray), own(config.blur), own(config.solarize),
        )  # fmt: skip

    return [
        *(spec(i, config.large_size, config.crop_scale, small=False) for i in range(large)),
        *(spec(i, config.small_size, (config.small_scale,), small=True) for i in range(config.small_views)),
    ]


def expand(specs: list[ViewSpec]) -> list[ViewSpec]:
    """One entry per view."""
    return [spec for spec in specs for _ in range(spec.count)]
