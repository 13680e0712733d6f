"""A network that training leaves as it is."""

import torch
from torch import Tensor, nn


class FrozenNetwork(nn.Module):
    """A network without gradients and always in evaluation mode: dropout is off, batch norms keep their statistics.

    network: maps (N, 3, H, W) to (N, dim). Its weights are in the state dict, so that a resumed run has them.
    """

    def __init__(self, network: nn.Module, dim: int):
        super().__init__()
        self.network, self.dim = network.requires_grad_(False), dim
        self.eval()

    def train(self, mode: bool = True) -> "FrozenNetwork":
        """Stay in evaluation mode, whatever the mode of the module around it."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(x)
        return features
