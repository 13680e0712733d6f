"""Rows of features shared out over ranks, and sums over ranks that are the same for any number of ranks.

Rows are divided into parts, and each rank has consecutive parts. A part is the same rows for any number of ranks, so a
result that is made of parts is the same too, if what parts give is joined in their order or added up exactly.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.distributed import gather, rank, sum_over_ranks, world_size

PART = 2**24  # coordinates of a part, which is on the device as a whole


class Rows(Protocol):
    """(N, D) rows that are read in slices: a tensor, an array, a memory map, or what makes either when asked."""

    shape: Any
    ndim: int

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any) -> Any: ...


class RowsInMemory:
    """(N, D) rows of which consecutive parts, by default this rank's, were read once and stay on a device."""

    ndim = 2

    def __init__(self, x: Rows, device: torch.device, numbers: range | None = None):
        self.shape = tuple(x.shape)
        self.first = _first_row(x, (share(part_count(x)) if numbers is None else numbers).start)
        kept = list(slices(x, PART, numbers))
        self.kept = torch.empty(sum(at.stop - at.start for at in kept), x.shape[1], device=device)
        for at in kept:
            self.kept[at.start - self.first : at.stop - self.first] = rows_at(x, at, device)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, at: slice | NDArray[np.int64]) -> Tensor:
        if isinstance(at, slice):
            return self.kept[at.start - self.first : at.stop - self.first]
        return self.kept[torch.from_numpy(at - self.first).to(self.kept.device)]


def share(parts: int, number: int | None = None, ranks: int | None = None) -> range:
    """The numbers of the parts of a rank, by default this one: consecutive, in rank order, as many for each rank."""
    number, ranks = rank() if number is None else number, ranks or world_size()
    return range(number * parts // ranks, (number + 1) * parts // ranks)


def part_count(x: Rows) -> int:
    """Number of parts of all rows."""
    return math.ceil(len(x) / _rows_per_part(x))


def _rows_per_part(x: Rows) -> int:
    return max(1, PART // max(1, int(x.shape[1])))


def _first_row(x: Rows, part: int) -> int:
    """The first row of a part; the number of rows for the part after the last one."""
    return min(len(x), part * _rows_per_part(x))


def slices(x: Rows, coordinates: int, numbers: range | None = None) -> Iterator[slice]:
    """Slices of about so many coordinates at most that together are some parts, by default this rank's."""
    step = max(1, coordinates // max(1, x.shape[1]))
    for part in share(part_count(x)) if numbers is None else numbers:
        stop = _first_row(x, part + 1)
        yield from (slice(first, min(first + step, stop)) for first in range(_first_row(x, part), stop, step))


def parts(x: Rows, device: torch.device, coordinates: int | None = None) -> Iterator[Tensor]:
    """This rank's rows as float32 on the device, part by part, or in smaller slices of so many coordinates."""
    return (rows_at(x, at, device) for at in slices(x, coordinates or PART))


def rows_at(x: Rows, at: slice | Tensor, device: torch.device) -> Tensor:
    """Rows of x as float32 on the device. Those of an array are copied: a memory map may be read-only."""
    rows = x[at if isinstance(at, slice) or isinstance(x, Tensor) else at.numpy()]
    if not isinstance(rows, Tensor):
        rows = torch.from_numpy(np.array(rows, dtype=np.float32))
    return rows.to(device, torch.float32)


def fetch(x: Rows, at: Tensor, device: torch.device) -> Tensor:
    """Rows of x by number, (M,) the same on every rank, on every rank: each from the rank that has it."""
    if world_size() == 1:
        return rows_at(x, at, device)
    own = share(part_count(x))
    here = (at >= _first_row(x, own.start)) & (at < _first_row(x, own.stop))
    bits = torch.zeros(len(at), x.shape[1], dtype=torch.int32, device=device)  # a sum of floats would lose -0.0
    if bool(here.any()):
        bits[here.to(device)] = rows_at(x, at[here], device).view(torch.int32)
    return sum_over_ranks(bits).view(torch.float32)


def gather_rows(local: Tensor, x: Rows, device: torch.device) -> Tensor:
    """(n,) a number for each of this rank's rows -> (N,) those of all ranks, in order, on CPU on every rank.

    They go through `device`, on which the process group communicates.
    """
    if world_size() == 1:
        return local.cpu()
    shares = [share(part_count(x), number) for number in range(world_size())]
    counts = [_first_row(x, numbers.stop) - _first_row(x, numbers.start) for numbers in shares]
    padded = torch.zeros(max(counts), dtype=local.dtype, device=device)
    padded[: len(local)] = local.to(device)
    gathered = gather(padded).cpu().split(max(counts))
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def sum_integers(*tensors: Tensor) -> list[Tensor]:
    """Sums over ranks of int64 tensors of one device, in one collective; exact, so the order of ranks is no matter."""
    if world_size() == 1:
        return list(tensors)
    summed = sum_over_ranks(torch.cat([tensor.flatten() for tensor in tensors]))
    pieces = summed.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def unit_of_sums(bound: float) -> float:
    """The power of two of which sums of magnitude `bound` at most are multiples, when they are kept as int64.

    Integers add up to the same in any order, floats do not. What is cut off of each term is less than 2^-61 of the
    bound.
    """
    return math.ldexp(1.0, math.frexp(bound)[1] - 62)
