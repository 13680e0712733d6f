"""Exponential moving average of a network: the teacher (target network) of a self-distillation method."""

import copy
import math

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """The moving average of a student:  teacher <- tau * teacher + (1 - tau) * student, once per optimizer step.

    The teacher is a deep copy without gradients. tau rises from its initial value to 1 along half a cosine over the run
    (BYOL, arXiv:2006.07733, sec. 3.3). The teacher's batch norms take their statistics from the batches that the
    teacher itself sees.
    """

    tau: Tensor

    def __init__(self, student: nn.Module, tau: float):
        super().__init__()
        self.initial_tau = tau
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("tau", torch.tensor(tau))
        self._student = [student]  # in a list: the student must not be registered (and saved) twice

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.teacher(x)
        return features

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Move the teacher towards the student. progress: fraction of the run's optimizer steps before this one."""
        tau = 1 - (1 - self.initial_tau) * (1 + math.cos(math.pi * progress)) / 2
        self.tau.fill_(tau)
        teacher, student = ([p.detach() for p in m.parameters()] for m in (self.teacher, self._student[0]))
        torch._foreach_lerp_(teacher, student, 1 - tau)  # one kernel for all parameters
