"""View specifications: how the views of an image are drawn."""

from dataclasses import dataclass

from utils.plan import ViewsConfig

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

    --blur and --solarize give all views one probability, or each large view its own (BYOL, app. B). Small views take
    these in turn, or the third number.
    """
    brightness, contrast, saturation, hue = config.jitter_strengths

    def probability(values: tuple[float, ...], number: int, small: bool) -> float:
        return values[2] if small and len(values) == 3 else values[number % min(2, len(values))]

    def spec(number: int, size: int, scale: tuple[float, float], small: bool) -> ViewSpec:
        return ViewSpec(
            size, scale, config.flip, config.jitter, brightness, contrast, saturation, hue, config.gray,
            blur=probability(config.blur, number, small), solarize=probability(config.solarize, number, small),
        )  # fmt: skip

    return [
        *(spec(i, config.large_size, config.crop_scale, small=False) for i in range(large)),
        *(spec(i, config.small_size, config.small_scale, small=True) for i in range(config.small_views)),
    ]


def expand(specs: list[ViewSpec]) -> list[ViewSpec]:
    """One entry per view."""
    return [spec for spec in specs for _ in range(spec.count)]
