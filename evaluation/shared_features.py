"""Features of all ranks in one copy on each machine: a memory map that its ranks share."""

import io
import math
import platform
import tempfile
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.distributed import broadcast_str, gather, raise_together, rank, rank_zero_print, sum_over_ranks
from utils.errors import UserError
from utils.files import create_allocated


def share_rows(own: Sequence[tuple[Tensor, Tensor]], n: int, device: torch.device, folder: Path | None) -> Tensor:
    """(N, D) float32 rows of all ranks, of which each rank writes its own; every rank of several must call.

    own: (rows, features) of this rank. device: on which the process group communicates. The file of the map is in
    `folder`, or where a machine has no such folder in the system's temporary one. It loses its name as soon as all
    ranks have opened it, so the disk gets its space back when the last of them drops the features or ends. Where a disk
    has no room, each rank gets a copy in its own memory, and a note is printed.
    """
    width = int(_gather_number(max((x.shape[1] for _, x in own), default=0), device).max())
    leaders = _gather_number(zlib.crc32(_machine().encode()), device).tolist()
    leader = leaders.index(leaders[rank()])  # the first rank of this machine
    place = folder if folder and folder.is_dir() else Path(tempfile.gettempdir())
    path = place / f"features-{broadcast_str(uuid.uuid4().hex)}-{leader}.npy"
    try:
        if not _create_everywhere(path, (n, width), leader == rank(), device):
            note = f"no room for {4e-9 * n * width:.3g} GB of features in {place}"
            rank_zero_print(f"  note: {note}; each process keeps a copy in memory")
            return _merge(own, torch.zeros(n, width), device)
        shared = np.load(path, mmap_mode="r+")
        for rows, features in own:
            shared[rows.numpy()] = features.numpy()
        raise_together(None)  # each rank has written its rows
        if len(set(leaders)) > 1:
            _exchange(shared, leader == rank(), device)
        private = torch.from_numpy(np.load(path, mmap_mode="c"))  # pages are shared until somebody writes to them
        raise_together(None)  # each rank has opened the file
    finally:
        if leader == rank():
            path.unlink(missing_ok=True)
    return private


def create_npy(path: Path, shape: tuple[int, ...], kind: str) -> None:
    """Create a .npy file of zeros with all its blocks on the disk; a disk without room is a UserError."""
    header = io.BytesIO()
    facts = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    size = len(header.getvalue()) + math.prod(shape) * np.dtype(kind).itemsize
    create_allocated(path, size, header.getvalue())


def _create_everywhere(path: Path, shape: tuple[int, int], leads: bool, device: torch.device) -> bool:
    """Whether the first rank of every machine could create the file."""
    created = True
    try:
        if leads:
            create_npy(path, shape, "f4")
    except UserError:
        created = False
    return bool(_gather_number(int(created), device).all())


def _merge(own: Sequence[tuple[Tensor, Tensor]], x: Tensor, device: torch.device, at_once: int = 2**16) -> Tensor:
    """x (N, D) of zeros, filled with the rows of all ranks, in parts of `at_once` rows."""
    for rows, features in own:
        x[rows] = features
    for part in x.split(at_once):
        part.copy_(sum_over_ranks(part.to(device)))
    return x


def _exchange(shared: NDArray[np.float32], leads: bool, device: torch.device, at_once: int = 2**16) -> None:
    """Complete the file of each machine, in which rows of other machines are zero, in parts of `at_once` rows."""
    for first in range(0, len(shared), at_once):
        part = torch.from_numpy(shared[first : first + at_once])
        total = sum_over_ranks(part.to(device) if leads else torch.zeros_like(part, device=device))
        if leads:
            shared[first : first + at_once] = total.cpu().numpy()
    raise_together(None)  # each leader has written


def _gather_number(number: int, device: torch.device) -> Tensor:
    return gather(torch.tensor([number], device=device)).cpu()


def _machine() -> str:
    return platform.node()
