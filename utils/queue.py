"""A first-in, first-out memory of embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.distributed import gather
from utils.precision import full_precision


class FeatureQueue(nn.Module):
    """The last `size` unit vectors, equal on all ranks and in the checkpoint, starting as random unit vectors.

    rows: (K, D) unit vectors. labels: (K,) of the images they came from, -1 unknown. age: (K,) pushes since a row
    entered, -1 for a random row of the start. Look-ups hand out copies, so a later push cannot change a graph.

    What `push` brings waits until `flush`, which the base class calls once per optimizer step: under accumulation
    the queue then moves as it would for one large batch.
    """

    rows: Tensor
    labels: Tensor
    age: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, seed: int):
        super().__init__()
        start = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))  # the same on every rank
        self.register_buffer("rows", F.normalize(start, dim=1))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("age", torch.full((size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def push(self, z: Tensor, labels: Tensor) -> None:
        """Hand in (N, D) unit vectors and (N,) labels of this rank; all ranks' rows enter at the next flush."""
        self._pending.append((gather(z.detach()), gather(labels)))

    @torch.no_grad()
    def flush(self) -> None:
        """Let what waits replace the oldest rows; any number of rows, wrapping around."""
        if not self._pending:
            return
        size = len(self.rows)
        z = torch.cat([z for z, _ in self._pending])[-size:].to(self.rows.dtype)
        labels = torch.cat([y for _, y in self._pending])[-size:]
        where = (self.pointer + torch.arange(len(z), device=z.device)) % size
        self.age[self.age >= 0] += 1
        self.rows[where], self.labels[where], self.age[where] = z, labels, 0
        self.pointer.copy_((self.pointer + len(z)) % size)
        self._pending.clear()

    @full_precision
    @torch.no_grad()
    def nearest(self, z: Tensor, at_once: int = 2**26) -> tuple[Tensor, Tensor]:
        """(N, D) unit queries -> (N,) positions of the rows with the largest cosine, and those cosines.

        `at_once` bounds the similarities in memory.
        """
        best = [(chunk @ self.rows.T).max(dim=1) for chunk in z.split(max(1, at_once // len(self.rows)))]
        return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])

    def health(self) -> dict[str, Tensor]:
        """queue_fill: share of rows that came from images. queue_age: their mean age in pushes."""
        real = self.age >= 0
        fill = real.float().mean()
        return {"queue_fill": fill, "queue_age": (self.age * real).sum() / real.sum().clamp(min=1)}
