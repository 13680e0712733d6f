"""Views with masked patches: random masks as functions of (seed, epoch, image, view), and the features of such views.

No number of masked patches is known to the host, so that it never waits for a GPU: all tensors have a fixed size.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.arg_types import area_share, probability
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.plan import ViewsConfig
from utils.random import uniform
from utils.view_features import ViewFeatures
from utils.vision_transformer import (
    embed_patches,
    patch_size,
    pool_tokens,
    require_vision_transformer,
    run_blocks,
    with_prefix,
)

BLOCKS = 12  # rectangles of an image that are drawn; as a rule three or four of them fill a mask
SMALLEST_BLOCK = 4  # patches (BEiT, arXiv:2106.08254, sec. 2.3)
LOG_ASPECT = math.log(1 / 0.3)  # largest logarithm of a rectangle's ratio of sides (BEiT, sec. 2.3)


class PatchMask(NamedTuple):
    """Masked patches of N images of T patches, in tensors of a fixed size.

    mask: (N, T) bool. positions: (N, M) int64, the masked patches of an image first, then others; M is the largest
    number that the ratio allows. weights: (N, M) float32, 1 / count for the masked ones and 0 for the others.
    """

    mask: Tensor
    positions: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class MaskedFeatures(ViewFeatures):
    """Features of views whose large ones the student sees masked; `evaluated` and `targets` are of the whole views.

    patches, targets: (L * N, T, D) output of the student and of the teacher at the patches of the L large views, one
    view after the other. mask: of the same rows.
    """

    patches: Tensor
    targets: Tensor
    mask: PatchMask


def add_mask_flags(parser: FlagGroup, source: str) -> None:
    """Add the flags of the masks with iBOT's defaults. source: the section of the paper that states them."""
    parser.add_argument("--mask_ratio", type=area_share, nargs=2, default=[0.1, 0.5], metavar=("MIN", "MAX"),
                        help=f"share of the patches of a masked view ({source})")  # fmt: skip
    parser.add_argument("--mask_probability", type=probability, default=0.5,
                        help=f"probability that a large view is masked ({source})")  # fmt: skip
    parser.add_argument("--mask_shape", choices=["block", "random"], default="block",
                        help=f"blocks of patches, or patches one by one ({source})")  # fmt: skip


def draw_masks(
    args: Namespace, index: Tensor, views: list[Tensor], patch: int, address: tuple[Tensor | int, ...]
) -> list[PatchMask]:
    """Draw the masks of views (N, 3, H, W) that the flags describe, independently in each view.

    patch: side of a patch in pixels. index, address: as in `mask_patches`.
    """
    sizes = [view.shape[-2:] for view in views]
    return [
        mask_patches(index, (height // patch, width // patch), args.mask_ratio, args.mask_probability, args.mask_shape,
                     (*address, number))
        for number, (height, width) in enumerate(sizes)
    ]  # fmt: skip


def require_masks(args: Namespace, backbone: nn.Module, views: ViewsConfig, method_name: str) -> int:
    """Return the side of a patch in pixels; raise a UserError where the views of the backbone cannot be masked so."""
    patch = patch_size(require_vision_transformer(backbone, method_name))
    for size, flag in zip(views.sizes, ("--large_size", "--small_size"), strict=False):
        if size % patch:
            raise UserError(
                f"{flag} {size}: {method_name} needs views of whole patches, which are {patch} px wide here; "
                f"choose a multiple of {patch}"
            )
    low, high = args.mask_ratio
    if low > high:
        raise UserError(f"--mask_ratio {low} {high}: the minimum is larger than the maximum; swap them")
    return patch


def masked_features(
    student: Any, teacher: Any, views: list[Tensor], masks: list[PatchMask], mask_token: Tensor
) -> MaskedFeatures:
    """Features of views, of which the student sees the large ones masked and the teacher only the large ones, whole.

    student, teacher: vision transformers of timm. views: (N, 3, H, W) tensors, large ones first, of which there are as
    many as masks. mask_token: (D,).
    """
    large, small = views[: len(masks)], views[len(masks) :]
    seen = [_tokens(student, view, m.mask, mask_token) for view, m in zip(large, masks, strict=True)]
    with torch.no_grad():
        targets = [_tokens(teacher, view) for view in large]
        evaluated = [pool_tokens(teacher, tokens) for tokens in targets]
    prefix = student.num_prefix_tokens
    return MaskedFeatures(
        large=[pool_tokens(student, tokens) for tokens in seen],
        small=[student(view) for view in small],
        evaluated=evaluated,
        patches=torch.cat([tokens[:, prefix:] for tokens in seen]),
        targets=torch.cat([tokens[:, prefix:] for tokens in targets]),
        mask=PatchMask(*(torch.cat(parts) for parts in zip(*masks, strict=True))),
    )


def _tokens(network: Any, view: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
    """Output of the last block for the prefix tokens and the patches of a view: (N, P + T, D)."""
    return run_blocks(network, with_prefix(network, embed_patches(network, view, mask, mask_token)))


def mask_patches(
    index: Tensor,
    grid: tuple[int, int],
    ratio: Sequence[float],
    share: float,
    shape: str,
    address: tuple[Tensor | int, ...],
) -> PatchMask:
    """Mask a share of the images, each at a ratio drawn from U(min, max).

    index: (N,) int64 positions of the images in the data set. grid: rows and columns of patches. ratio: (min, max) of
    the patches. shape: "random" patches, or "block": rectangles of random areas and aspects, one after the other, until
    the ratio is reached. address: what the numbers depend on beside the image, as (seed, epoch, view).
    """
    patches = grid[0] * grid[1]
    largest = max(1, int(ratio[1] * patches))
    drawn = _draw(index, 2, address, 0)  # (N, 2): is the image masked, and at which ratio
    count = ((ratio[0] + (ratio[1] - ratio[0]) * drawn[:, 1]) * patches).long() * (drawn[:, 0] < share)  # (N,)
    order = _draw(index, patches, address, 1)  # (N, T)
    if shape == "block":
        order = order + _first_block(index, grid, count, address)
    positions = order.argsort(dim=1)[:, :largest]  # (N, M)
    masked = torch.arange(largest, device=index.device) < count[:, None]
    mask = torch.zeros_like(order, dtype=torch.bool).scatter(1, positions, masked)
    return PatchMask(mask, positions, (masked / count.clamp(min=1)[:, None]).float())


def _draw(index: Tensor, n: int, address: tuple[Tensor | int, ...], purpose: int) -> Tensor:
    """n numbers in [0, 1) for each image: (N, n)."""
    return uniform(*address, purpose, index[:, None], torch.arange(n, device=index.device)[None])


def _first_block(index: Tensor, grid: tuple[int, int], count: Tensor, address: tuple[Tensor | int, ...]) -> Tensor:
    """The number of the first rectangle that covers a patch, BLOCKS where none does: (N, T) float64.

    count: (N,) patches that are to be masked; the area of a rectangle is drawn from U(SMALLEST_BLOCK, count).
    """
    area, aspect, top, left = (_draw(index, BLOCKS, address, purpose) for purpose in (2, 3, 4, 5))  # each (N, BLOCKS)
    area = SMALLEST_BLOCK + area * (count[:, None] - SMALLEST_BLOCK).clamp(min=0)
    aspect = torch.exp((2 * aspect - 1) * LOG_ASPECT)
    covers = []
    for start, size, patches in ((top, (area * aspect).sqrt(), grid[0]), (left, (area / aspect).sqrt(), grid[1])):
        size = size.round().clamp(1, patches)
        first = (start * (patches - size + 1)).floor()[..., None]  # (N, BLOCKS, 1)
        place = torch.arange(patches, device=index.device)
        covers.append((place >= first) & (place < first + size[..., None]))  # (N, BLOCKS, rows or columns)
    covered = (covers[0][..., :, None] & covers[1][..., None, :]).flatten(2)  # (N, BLOCKS, T)
    number = torch.arange(BLOCKS, device=index.device, dtype=torch.float64)[:, None]
    return torch.where(covered, number, float(BLOCKS)).amin(dim=1)
