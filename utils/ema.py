"""A teacher that follows its student slowly."""

import copy
import math

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """The moving average of a student:  teacher <- tau * teacher + (1 - tau) * student, once per optimizer step.

    A deep copy without gradients. tau rises from its start to 1 along half a cosine over the run (BYOL, sec. 3.3).
    The teacher's batch norms take their statistics from the batches that the teacher itself sees.
    """

    tau: Tensor

    def __init__(self, student: nn.Module, tau: float):
        super().__init__()
        self.start = tau
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("tau", torch.tensor(tau))
        self._student = [student]  # in a list: the student must not be registered (and saved) twice

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    @torch.no_grad()
    def step(self, done: float) -> None:
        """Move towards the student; `done` in [0, 1] is the share of the run's optimizer steps before this one."""
        tau = 1 - (1 - self.start) * (1 + math.cos(math.pi * done)) / 2
        self.tau.fill_(tau)
        teacher, student = ([p.detach() for p in m.parameters()] for m in (self.teacher, self._student[0]))
        torch._foreach_lerp_(teacher, student, 1 - tau)  # one kernel for all of them
