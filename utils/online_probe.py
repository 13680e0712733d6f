"""The online linear probe: a classifier that is trained beside the method on detached features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import SumMetric

from utils.distributed import mean_over_ranks
from utils.precision import at_least_float32


class OnlineProbe(nn.Sequential):
    """A linear classifier of standardized features: (N, D) -> (N, classes); its gradient never reaches the backbone.

    Features are standardized first: one learning rate then suits backbones of any scale. The random generator is
    restored, so that the number of classes does not change the initial weights of the method.
    """

    def __init__(self, dim: int, classes: int):
        with torch.random.fork_rng(devices=[]):
            super().__init__(nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, classes))
        # A search for NaN, and an accuracy of torchmetrics, would wait for the GPU in each batch.
        self.correct, self.known = (SumMetric(nan_strategy="disable") for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self[1](self[0](features))  # the counters of validation are children too
        return logits

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy on features (N, D) with labels (N,), -1 where unknown."""
        logits = at_least_float32(self(features.detach()))
        # Ranks may have unequally many known labels: the mean over all of these is not the mean of the ranks' means.
        known = mean_over_ranks((labels >= 0).sum().to(logits.dtype)).clamp(min=1e-6)
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / known
        return {"probe_loss": loss, "probe_acc": 100 * (logits.argmax(dim=1) == labels).sum() / known}

    def count(self, features: Tensor, labels: Tensor) -> None:
        """Count right predictions and known labels of a validation batch."""
        self.correct.update(self(features).argmax(dim=1) == labels)
        self.known.update(labels >= 0)

    def counted_accuracy(self) -> Tensor:
        """Accuracy in per cent of all batches that were counted on any rank; the counts begin anew."""
        accuracy: Tensor = 100 * self.correct.compute() / self.known.compute().clamp(min=1)
        self.correct.reset()
        self.known.reset()
        return accuracy
