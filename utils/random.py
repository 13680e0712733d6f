"""Random numbers without a generator: each is a function of its address, never of what was drawn before.

An address such as (seed, epoch, image, view) is hashed by splitmix64 (Steele et al., 2014,
doi:10.1145/2714064.2660195). The number of processes, of workers and of restarts therefore changes nothing.
"""

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)


def uniform_array(*address: int | NDArray) -> NDArray:
    """Independent uniform float64 numbers in [0, 1), one per address; integers and integer arrays are broadcast."""
    h: NDArray = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in address:
            h = _mix_array(h + (np.asarray(part).astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))
    return (h >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix_array(x: NDArray) -> NDArray:
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(SHIFTS[-1])
    return x


def uniform(*address: int | Tensor) -> Tensor:
    """The numbers of `uniform_array` as a tensor, on the device of the tensors of int64 among the address.

    Nothing waits for a GPU. A number that changes from step to step should be a tensor, such as that of a
    `ScheduledValue`: a compiled step is otherwise compiled anew for each value.
    """
    device = next((part.device for part in address if isinstance(part, Tensor)), torch.device("cpu"))
    h = torch.zeros((), dtype=torch.long, device=device)
    for part in address:
        h = _mix(h + _times_golden(part))
    numbers: Tensor = _shift_right(h, 11).double() * 2.0**-53
    return numbers


def _times_golden(part: int | Tensor) -> int | Tensor:
    """(part + 1) * GOLDEN modulo 2**64."""
    if isinstance(part, int):
        return _signed((part + 1) * GOLDEN % 2**64)
    product: Tensor = (part + 1) * _signed(GOLDEN)
    return product


def _mix(x: Tensor) -> Tensor:
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        x = (x ^ _shift_right(x, shift)) * _signed(factor)
    mixed: Tensor = x ^ _shift_right(x, SHIFTS[-1])
    return mixed


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift the 64 bits of int64 numbers to the right and fill with zeros, as for unsigned ones."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(x: int) -> int:
    """The int64 number with these 64 bits."""
    return x - 2**64 if x >= 2**63 else x


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, for libraries that draw from them, as for initial weights."""
    pl.seed_everything(seed, verbose=False)
