"""The last embedding of every training image (memory bank), by the position of the image in the data set."""

import torch
from torch import Tensor

from utils.distributed import gather_together
from utils.step_modules import StepModule


class MemoryBank(StepModule):
    """The last embeddings of all images, equal on all ranks and saved in the checkpoint.

    rows: (V, M, D) embeddings of V views of M images, 0 for an image that was not seen yet.

    Rows that `push` brings are pending until the optimizer step, so that a step that is skipped leaves the bank as it
    was.
    """

    rows: Tensor

    def __init__(self, images: int, views: int, dim: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(views, images, dim))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def push(self, index: Tensor, z: list[Tensor]) -> None:
        """Hand in V embeddings (n, D) of this rank's images at the positions index (n,), as many on every rank."""
        index, rows = gather_together(index, torch.stack([x.detach() for x in z], dim=1))  # (N,), (N, V, D)
        self._pending.append((index, rows))

    @torch.no_grad()
    def after_optimizer_step(self, progress: float = 0.0) -> None:
        """Replace the rows of the pending images; where a new row is NaN or infinite the old one stays."""
        for index, z in self._pending:
            new, old = z.transpose(0, 1).to(self.rows.dtype), self.rows[:, index]
            finite = torch.isfinite(new).all(dim=2, keepdim=True)  # no boolean mask, which would wait for the GPU
            self.rows.index_copy_(1, index, torch.where(finite, new, old))
        self._pending.clear()

    def discard(self) -> None:
        self._pending.clear()
