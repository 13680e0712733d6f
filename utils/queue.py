"""A first-in, first-out queue of embeddings (memory bank, support set)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.distributed import gather_together
from utils.precision import full_precision
from utils.step_modules import StepModule


class FeatureQueue(StepModule):
    """The last `size` unit vectors, equal on all ranks and saved in the checkpoint; random unit vectors at first.

    rows: (K, D) unit vectors. labels: (K,) labels of their images, -1 where unknown. age: (K,) optimizer steps since a
    row entered, -1 for a random row of the start. pointer: position of the oldest row, which is replaced next.

    Rows that `push` brings are pending until the optimizer step: under accumulation the queue then moves as it would
    for one large batch.
    """

    rows: Tensor
    labels: Tensor
    age: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, seed: int):
        super().__init__()
        start = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))  # equal on every rank
        self.register_buffer("rows", F.normalize(start, dim=1))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("age", torch.full((size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def push(self, z: Tensor, labels: Tensor) -> None:
        """Hand in (N, D) unit vectors and (N,) labels of this rank; the rows of all ranks enter after the next step."""
        z, labels = gather_together(z.detach(), labels)
        self._pending.append((z, labels))

    @torch.no_grad()
    def after_optimizer_step(self, progress: float = 0.0) -> None:
        """Replace the oldest rows by the pending ones: any number of rows, wrapping around at the end.

        Where a pending row is NaN or infinite the old row stays: it would be the neighbour of every later query.
        """
        if not self._pending:
            return
        size = len(self.rows)
        z = torch.cat([z for z, _ in self._pending])[-size:].to(self.rows.dtype)
        labels = torch.cat([y for _, y in self._pending])[-size:]
        positions = (self.pointer + torch.arange(len(z), device=z.device)) % size
        self.age += self.age >= 0
        finite = torch.isfinite(z).all(dim=1)  # no boolean mask, which would wait for the GPU
        self.rows[positions] = torch.where(finite[:, None], z, self.rows[positions])
        self.labels[positions] = torch.where(finite, labels, self.labels[positions])
        self.age[positions] = torch.where(finite, 0, self.age[positions])
        self.pointer.copy_((self.pointer + len(z)) % size)
        self._pending.clear()

    def discard(self) -> None:
        self._pending.clear()

    def nearest(self, z: Tensor, max_similarities: int = 2**26) -> tuple[Tensor, Tensor]:
        """`nearest_several` of one neighbour: (N,) positions and cosines."""
        index, cosine = self.nearest_several(z, 1, max_similarities)
        return index[:, 0], cosine[:, 0]

    @full_precision
    @torch.no_grad()
    def nearest_several(
        self, z: Tensor, k: int, max_similarities: int = 2**26, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the k rows with the largest cosines for each query: (N, k) positions and cosines, the nearest one first.

        z: (N, D) unit queries. max_similarities: upper bound on the similarities in memory. labels: (N,) of the
        queries, where rows with their label come before all others; a negative one has no preference. Indexing
        `rows` with the positions copies, so a later step cannot change a graph.
        """
        size = max(1, max_similarities // len(self.rows))
        best = [
            self._nearest(z[i : i + size], k, None if labels is None else labels[i : i + size])
            for i in range(0, len(z), size)
        ]
        return torch.cat([index for index, _ in best]), torch.cat([cosine for _, cosine in best])

    def _nearest(self, z: Tensor, k: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """`nearest_several` of one chunk."""
        cosine = rank = z @ self.rows.T
        if labels is not None:
            other = (labels[:, None] != self.labels) & (labels >= 0)[:, None]
            rank = cosine - 3 * other  # cosines are within [-1, 1]
        best = rank.max(dim=1, keepdim=True) if k == 1 else rank.topk(k, dim=1)
        return best.indices, best.values if labels is None else cosine.gather(1, best.indices)

    def metrics(self) -> dict[str, Tensor]:
        """Logged state of the queue. queue_fill: share of rows that came from images; queue_age: their mean age."""
        real = self.age >= 0
        fill = real.float().mean()
        return {"queue_fill": fill, "queue_age": (self.age * real).sum() / real.sum().clamp(min=1)}
