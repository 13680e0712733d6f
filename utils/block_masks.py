"""Random blocks of patches: the context and the targets of I-JEPA."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError
from utils.masked_tokens import MASKS
from utils.random import uniform

TARGET_ASPECT = (0.75, 1.5)  # height / width of a target block (I-JEPA, sec. 4)
SMALLEST_SHARE = 0.01  # of the images whose context has fewer patches than all are given
SIMULATED = 1000  # images by which the size of the context is found


@dataclass(frozen=True)
class Blocks:
    """Positions of patches, int64. context: (N, C). targets: (N, B, K). distinct: (N, B, K), False for repetitions."""

    context: Tensor
    targets: Tensor
    distinct: Tensor


class BlockSampler:
    """Blocks of a grid of T patches, as functions of (seed, epoch, image): the multi-block masks of I-JEPA, fig. 4.

    Each image has `blocks` target blocks, with a share of the patches in target_scale and an aspect ratio in
    TARGET_ASPECT, and a square context block with a share in context_scale, from which all targets are cut out. Targets
    may overlap each other. The blocks of all images have the same number of patches, so that tensors have fixed shapes:
    a smaller target, and a context of fewer patches, repeats some of its patches; a larger context is a random subset.

    max_target: K, the patches of the largest target block. context_patches: C, the size that all but 1 % of the
    contexts reach, about the smallest of a batch of 100 images.

    Deviation: the official code draws the sizes once per batch, scale and aspect ratio from the same random number, and
    cuts every context to the smallest of the batch, in which the last rows are lost. It never puts a block on the last
    row and column. On small grids it may find no context; here the largest target leaves one always.
    """

    def __init__(
        self, grid: tuple[int, int], blocks: int, target_scale: tuple[float, float], context_scale: tuple[float, float]
    ):
        _check_scales(blocks, target_scale, context_scale)
        self.grid, self.blocks = grid, blocks
        self.target_scale, self.context_scale = target_scale, context_scale
        rows, columns = grid
        side = _side(torch.tensor(context_scale[0] * rows * columns, dtype=torch.float64))
        smallest_context = min(int(side), rows) * min(int(side), columns)
        room = (smallest_context - 1) // blocks  # patches that each target may take, and one is left
        if room < 1:
            raise UserError(
                f"a grid of {rows} x {columns} patches has no room for {blocks} target blocks beside a context; choose "
                f"a larger --large_size or a backbone with smaller patches"
            )
        self.max_target = min(room, math.ceil(target_scale[1] * rows * columns))
        context, _ = self._masks(0, 0, torch.arange(SIMULATED))
        counts = context.sum(dim=1).sort().values
        self.context_patches = int(counts[int(SMALLEST_SHARE * SIMULATED)])

    def draw(self, seed: int, epoch: Tensor, image: Tensor) -> Blocks:
        """Draw the blocks of images. epoch: 0-dim int64. image: (N,) int64, positions in the data set."""
        context, targets = self._masks(seed, epoch, image)
        place = torch.arange(targets.shape[-1], device=image.device)  # (T,)
        order = uniform(seed, MASKS, epoch, image[:, None], self.blocks + 1, place)  # (N, T)
        number = torch.arange(self.max_target, device=image.device)
        return Blocks(
            _first(context, order, self.context_patches),
            _first(targets, place.to(order.dtype).expand_as(targets), self.max_target),
            number < targets.sum(dim=-1, keepdim=True),
        )

    def _masks(self, seed: int, epoch: int | Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each patch is in the context (N, T), and in each target block (N, B, T)."""
        block, number = (torch.arange(count, device=image.device) for count in (self.blocks + 1, 4))
        random = uniform(seed, MASKS, epoch, image[:, None, None], block[:, None], number)  # (N, B + 1, 4)
        targets = self._rectangles(random[:, :-1], self.target_scale, TARGET_ASPECT, self.max_target)
        whole = self.grid[0] * self.grid[1]
        context = self._rectangles(random[:, -1], self.context_scale, (1.0, 1.0), whole)
        return context & ~targets.any(dim=1), targets

    def _rectangles(self, random: Tensor, scale: tuple[float, float], aspect: tuple[float, float], most: int) -> Tensor:
        """Rectangles of at most `most` patches, as masks (..., T), from numbers in [0, 1) (..., 4).

        The numbers choose the share of the patches, the aspect ratio, and the row and the column.
        """
        rows, columns = self.grid
        area = (scale[0] + random[..., 0] * (scale[1] - scale[0])) * rows * columns
        ratio = aspect[0] + random[..., 1] * (aspect[1] - aspect[0])
        height = _side(area * ratio).clamp(max=min(rows, most))
        width = torch.minimum(_side(area / ratio), (most / height).floor()).clamp(max=columns)
        top, left = ((x * (room + 1)).floor() for x, room in ((random[..., 2], rows - height),
                                                              (random[..., 3], columns - width)))  # fmt: skip
        row = torch.arange(rows, device=random.device)[:, None]
        column = torch.arange(columns, device=random.device)
        height, width, top, left = (x[..., None, None] for x in (height, width, top, left))
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        return inside.flatten(-2)


def _check_scales(blocks: int, target: tuple[float, float], context: tuple[float, float]) -> None:
    for name, (low, high) in (("target", target), ("context", context)):
        if low > high:
            raise UserError(
                f"{name} blocks of {low:g} to {high:g} of the patches: the minimum is above the maximum; swap them"
            )
    if blocks * target[1] >= context[0]:
        raise UserError(
            f"{blocks} target blocks of up to {target[1]:g} of the patches can cover a context of {context[0]:g}; "
            f"choose fewer or smaller target blocks"
        )


def _side(area: Tensor) -> Tensor:
    """Side of a square in whole patches, at least one."""
    return area.sqrt().round().clamp(min=1)


def _first(mask: Tensor, order: Tensor, count: int) -> Tensor:
    """Positions of the first `count` True entries of each row of a mask (..., T), by ascending `order` (..., T) >= 0.

    Where a row has fewer they are repeated from the first; none has none. Shapes do not depend on values.
    """
    ranked = torch.where(mask, order, torch.inf).argsort(dim=-1)
    number = torch.arange(count, device=mask.device) % mask.sum(dim=-1, keepdim=True)
    return ranked.gather(-1, number)
