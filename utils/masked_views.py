"""Views with masked patches: random masks as functions of (seed, epoch, image, view), and the features of such views.

No number of masked patches is known to the host, so that it never waits for a GPU: all tensors have a fixed size.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.arg_types import area_share, probability
from utils.errors import UserError
from utils.optim import FlagGroup
from utils.random import uniform
from utils.view_features import ViewFeatures
from utils.vision_transformer import embed_patches, pool_tokens, run_blocks, with_prefix

BLOCKS = 12  # rectangles of an image that are drawn; as a rule three or four of them fill a mask
SMALLEST_BLOCK = 4  # patches (BEiT, arXiv:2106.08254, sec. 2.3)
LOG_ASPECT = math.log(1 / 0.3)  # largest logarithm of a rectangle's ratio of sides (BEiT, sec. 2.3)


class PatchMask(NamedTuple):
    """Masked patches of n views of T patches, in tensors of a fixed size.

    mask: (n, T) bool. positions: (n, M) int64, the masked patches of a view first, then others; M is the largest
    number that the ratio allows. weights: (n, M) float32, 1 / count for the masked ones and 0 for the others.
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

    evaluated: list[Tensor]
    patches: Tensor
    targets: Tensor
    mask: PatchMask


def add_mask_flags(parser: FlagGroup, source: str) -> None:
    """Add the flags of the masks with iBOT's defaults. source: the section of the paper that states them."""
    parser.add_argument("--mask_ratios", type=area_share, nargs=2, default=[0.1, 0.5], metavar=("MIN", "MAX"),
                        help=f"share of the patches of a masked view ({source})")  # fmt: skip
    parser.add_argument("--mask_probability", type=probability, default=0.5,
                        help=f"probability that a large view is masked ({source})")  # fmt: skip
    parser.add_argument("--mask_shape", choices=["block", "random"], default="block",
                        help=f"blocks of patches, or patches one by one ({source})")  # fmt: skip


def masked_features(
    student: Any, teacher: Any, views: list[Tensor], large_views: int, mask: PatchMask, mask_token: Tensor
) -> MaskedFeatures:
    """Features of views, of which the student sees the large ones masked and the teacher only the large ones, whole.

    student, teacher: vision transformers of timm. views: (N, 3, H, W) tensors, large ones first. mask: of the rows of
    the large views. mask_token: (D,).
    """
    large, small = views[:large_views], views[large_views:]
    masks = mask.mask.chunk(large_views)
    seen = [_tokens(student, view, hidden, mask_token) for view, hidden in zip(large, masks, strict=True)]
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
        mask=mask,
    )


def _tokens(network: Any, view: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
    """Output of the last block for the prefix tokens and the patches of a view: (N, P + T, D)."""
    return run_blocks(network, with_prefix(network, embed_patches(network, view, mask, mask_token)))


def check_masks(args: Namespace) -> None:
    """Raise a UserError for flags that contradict each other."""
    low, high = args.mask_ratios
    if low > high:
        raise UserError(f"--mask_ratios {low} {high}: the minimum is larger than the maximum; swap them")


def draw_masks(
    args: Namespace, index: Tensor, views: Sequence[Tensor], side: int, seed: int, epoch: Tensor
) -> PatchMask:
    """Draw the masks of large views that the flags describe: of L * N rows, one view of the N images after the other.

    Each view of an image is masked with --mask_probability, at a ratio from U(min, max). "random" masks single patches,
    "block" rectangles of random areas and aspects, one after the other, until the ratio is reached.
    index: (N,) int64 positions of the images in the data set. views: L large views (N, 3, H, W). side: of a patch in
    pixels. epoch: int64.
    """
    grid = views[0].shape[-2] // side, views[0].shape[-1] // side
    rows, patches = index.repeat(len(views))[:, None], grid[0] * grid[1]  # (L * N, 1)
    number = torch.arange(len(views), device=index.device).repeat_interleave(len(index))[:, None]  # of the view
    slots = torch.arange(2 + patches + 4 * BLOCKS, device=index.device)
    drawn, order, blocks = uniform(seed, epoch, number, rows, slots).split([2, patches, 4 * BLOCKS], dim=1)
    low, high = args.mask_ratios
    largest = max(1, int(high * patches))
    count = ((low + (high - low) * drawn[:, 1]) * patches).long() * (drawn[:, 0] < args.mask_probability)  # (L * N,)
    if args.mask_shape == "block":
        order = order + _first_block(blocks.unflatten(1, (4, BLOCKS)), grid, count)
    positions = order.argsort(dim=1)[:, :largest]  # (L * N, M)
    masked = torch.arange(largest, device=index.device) < count[:, None]
    mask = torch.zeros_like(order, dtype=torch.bool).scatter(1, positions, masked)
    return PatchMask(mask, positions, (masked / count.clamp(min=1)[:, None]).float())


def _first_block(drawn: Tensor, grid: tuple[int, int], count: Tensor) -> Tensor:
    """The number of the first rectangle that covers a patch, BLOCKS where none does: (n, T) float64.

    drawn: (n, 4, BLOCKS) uniform numbers. count: (n,) patches that are to be masked; the area of a rectangle is from
    U(SMALLEST_BLOCK, count).
    """
    area = SMALLEST_BLOCK + drawn[:, 0] * (count[:, None] - SMALLEST_BLOCK).clamp(min=0)  # (n, BLOCKS)
    aspect = torch.exp((2 * drawn[:, 1] - 1) * LOG_ASPECT)
    covers = []
    sides = ((drawn[:, 2], area * aspect, grid[0]), (drawn[:, 3], area / aspect, grid[1]))
    for start, square, patches in sides:
        size = square.sqrt().round().clamp(1, patches)
        first = (start * (patches - size + 1)).floor()[..., None]  # (n, BLOCKS, 1)
        place = torch.arange(patches, device=count.device)
        covers.append((place >= first) & (place < first + size[..., None]))  # (n, BLOCKS, rows or columns)
    covered = (covers[0][..., :, None] & covers[1][..., None, :]).flatten(2)  # (n, BLOCKS, T)
    number = torch.arange(BLOCKS, device=count.device, dtype=torch.float64)[:, None]
    return torch.where(covered, number, float(BLOCKS)).amin(dim=1)
