"""Exponential moving average of a network: the teacher (target network) of a self-distillation method."""

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from utils.arg_types import probability
from utils.optim import FlagGroup
from utils.step_modules import StepModule, cosine_value
from utils.vision_transformer import disable_drop_path


def add_tau_flags(parser: FlagGroup, tau: float, source: str, path: str = "half a cosine", note: str = "") -> None:
    """Add --tau and --final_tau with a paper's defaults. source: what states them; note: on other defaults of --tau."""
    parser.add_argument(
        "--tau", type=probability, default=tau, help=f"initial decay of the moving average ({source}){note}"
    )
    parser.add_argument(
        "--final_tau", type=probability, default=1.0,
        help=f"decay of the moving average at the end of the run, reached along {path} ({source}); the value of --tau "
        "keeps it constant",
    )  # fmt: skip


class EMA(StepModule):
    """The moving average of a student:  teacher <- tau * teacher + (1 - tau) * student, once per optimizer step.

    The teacher is a deep copy without gradients and without drop path. tau goes from its initial value to final_tau
    over the run, along half a cosine (BYOL, arXiv:2006.07733, sec. 3.3) or a line; equal values keep it constant
    (MoCo). The teacher's batch norms take their statistics from the batches that the teacher itself sees; with
    average_buffers they are averages of the student's instead, for a teacher in evaluation mode.
    """

    tau: Tensor

    def __init__(
        self,
        student: nn.Module,
        tau: float,
        final_tau: float = 1.0,
        schedule: Literal["cosine", "linear"] = "cosine",
        average_buffers: bool = False,
    ):
        super().__init__()
        self.initial_tau, self.final_tau, self.schedule = tau, final_tau, schedule
        self.average_buffers = average_buffers
        self.teacher = disable_drop_path(copy.deepcopy(student).requires_grad_(False))
        self.register_buffer("tau", torch.tensor(tau))
        self._student = [student]  # in a list: the student must not be registered (and saved) twice

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.teacher(x)
        return features

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        if self.schedule == "cosine":
            tau = cosine_value(self.initial_tau, self.final_tau, progress)
        else:
            tau = self.initial_tau + (self.final_tau - self.initial_tau) * progress
        self.tau.fill_(tau)
        teacher, student = (list(self._averaged(m)) for m in (self.teacher, self._student[0]))
        torch._foreach_lerp_(teacher, student, 1 - tau)  # one kernel for all tensors

    def _averaged(self, network: nn.Module) -> Iterator[Tensor]:
        yield from (p.detach() for p in network.parameters())
        if self.average_buffers:
            yield from (b for b in network.buffers() if b.is_floating_point())
