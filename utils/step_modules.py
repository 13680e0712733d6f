"""Modules whose state belongs to optimizer steps: moved once per step, or set to its value before each step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.distributed import mean_over_ranks

Schedule = Callable[[float, float], float]  # (epochs taken, fraction of the run's steps taken) -> value


class StepModule(nn.Module):
    """A module whose state moves once per optimizer step and not once per batch, as queues and teachers do."""

    def after_optimizer_step(self, progress: float) -> None:
        """Move. progress: fraction of the run's optimizer steps that were taken before this one."""

    def discard(self) -> None:
        """Forget what waits for the next move: the optimizer step that it belonged to was skipped."""


class RunningMean(StepModule):
    """Moving average over all ranks:  value <- momentum * value + (1 - momentum) * mean, once per optimizer step.

    value: of the given shape, 0 at first, equal on all ranks and saved in the checkpoint. Under accumulation the mean
    is that of the means of the accumulated batches.
    """

    value: Tensor

    def __init__(self, shape: tuple[int, ...], momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(shape))
        self._pending: list[Tensor] = []

    def push(self, mean: Tensor) -> None:
        """Hand in the mean of this rank's share of the batch; ranks have shares of equal size."""
        self._pending.append(mean_over_ranks(mean.detach()))

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        if self._pending:
            self.value.lerp_(torch.stack(self._pending).mean(dim=0).to(self.value.dtype), 1 - self.momentum)
            self._pending.clear()

    def discard(self) -> None:
        self._pending.clear()


class ScheduledValue(nn.Module):
    """A number that follows a schedule, set before each forward pass: a temperature, a number of the epoch, a switch.

    value: the number as a tensor without dimensions, for losses; reading it does not wait for a GPU, and a compiled
    step is not compiled anew for each value. number: the same as a Python number, for switches that change a few
    times in a run.
    """

    value: Tensor

    def __init__(self, schedule: Schedule, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.schedule = schedule
        self.number = schedule(0.0, 0.0)
        self.register_buffer("value", torch.tensor(self.number, dtype=dtype), persistent=False)

    def update(self, epoch: float, progress: float) -> None:
        """Set the number. epoch: epochs taken, with their fraction. progress: fraction of the run's steps taken."""
        number = self.schedule(epoch, progress)
        if number != self.number:
            self.number = number
            self.value.fill_(number)


def epoch_number() -> ScheduledValue:
    """The number of epochs that are complete, int64: part of the address of random numbers."""
    return ScheduledValue(lambda epoch, progress: int(epoch), torch.long)


def linear_warmup(first: float, last: float, epochs: float) -> Schedule:
    """Schedule that rises or falls linearly from `first` to `last` over the first epochs and stays there."""
    return lambda epoch, progress: last if epoch >= epochs else first + (last - first) * epoch / epochs


def cosine(first: float, last: float) -> Schedule:
    """Schedule along half a cosine from `first` to `last` over the run."""
    return lambda epoch, progress: cosine_value(first, last, progress)


def cosine_value(first: float, last: float, progress: float) -> float:
    """Value of half a cosine from `first` (progress 0) to `last` (progress 1)."""
    return last - (last - first) * (1 + math.cos(math.pi * progress)) / 2
