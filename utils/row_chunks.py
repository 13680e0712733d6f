"""Functions of a large matrix, a chunk of its rows at a time, forward and backward."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Entries of a matrix in memory, 64 MiB in float32: no more than the activations of one photograph in a ResNet-50, so
# that similarities never decide what fits. A batch of 4096 images on 8 GPUs has two views of 512 images by two of 4096
# on each: 2**23 entries, one chunk.
MAX_ENTRIES = 2**24


def map_row_chunks(function: Callable[..., tuple[Tensor, ...]], columns: int, *rows: Tensor) -> tuple[Tensor, ...]:
    """function(*rows), computed in chunks where its matrix of len(rows[0]) by `columns` exceeds MAX_ENTRIES.

    rows: tensors (M, ...). function: takes the same rows of each of them, and returns tensors (m, ...) that depend on
    these m rows alone; they are concatenated. The matrix of a chunk is computed again in the backward pass, so that
    one of them at a time is in memory. Up to MAX_ENTRIES the function is called once and nothing is computed twice.
    """
    size = max(1, MAX_ENTRIES // columns)
    if len(rows[0]) <= size:
        return function(*rows)
    chunks = zip(*(x.split(size) for x in rows), strict=True)
    # The function draws no random numbers: there is no state of a generator to keep, which would wait for the GPU.
    parts = [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))
