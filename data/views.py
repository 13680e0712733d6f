"""What a view is."""

from argparse import Namespace
from dataclasses import dataclass

RATIO = (3 / 4, 4 / 3)  # aspect of a crop, width over height
SIGMA = (0.1, 2.0)  # of the blur, in pixels (SimCLR, app. A)


@dataclass(frozen=True)
class ViewSpec:
    """How views of one kind are drawn from an image; probabilities in [0, 1], strengths as torchvision's ColorJitter.

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


def large_views(args: Namespace) -> list[ViewSpec]:
    """The two large views; --blur and --solarize may give each its own probability (BYOL, app. B)."""
    brightness, contrast, saturation, hue = args.jitter_strengths
    both = {"blur": args.blur, "solarize": args.solarize}
    return [
        ViewSpec(args.large_size, tuple(args.crop_scale), args.flip, args.jitter, brightness, contrast, saturation, hue,
                 args.gray, **{k: v[i % len(v)] for k, v in both.items()})
        for i in range(2)
    ]  # fmt: skip


def expand(specs: list[ViewSpec]) -> list[ViewSpec]:
    """One entry per view."""
    return [spec for spec in specs for _ in range(spec.count)]
