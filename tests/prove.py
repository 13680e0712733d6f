"""Invariance of every method to the number of processes: 1, 2 and 3 compute the same in float64.

    python3 -m tests.prove

prints, for each method and number of processes, the largest relative difference from one process of the loss, of the
gradient of every parameter, and of the state after two epochs of two optimizer steps: every parameter, buffer, queue
row, centroid and moving average. All in float64, with real batch norm over the global batch; momentum SGD, the rules
and schedules of its groups, the hooks of the epochs and the online probe are the application's own.
"""

import contextlib
import functools
import sys
import tempfile
import unittest.mock
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from methods.base import Method
from tests.helpers.commands import construct, flags_of, plan_of
from tests.helpers.method_cases import backbone_of, every_case
from tests.helpers.processes import Ranks
from utils import distributed
from utils.batch import Batch
from utils.distributed import mean_over_ranks
from utils.optim import build_scheduler
from utils.plan import BatchConfig
from utils.sync_batchnorm import synchronize_batch_norm

N = 12  # images of the global batch, which 1, 2 and 3 divide
EPOCH_STEPS, STEPS = 2, 4  # optimizer steps
TOLERANCE = 1e-9


class Pooled(nn.Sequential):
    """A smooth convolutional backbone for views of any size; (N, 3, S, S) -> (N, 8)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8)
        )


class Losses(nn.Module):
    """The method as a module for DDP, which needs the losses from `forward`."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.compute_losses(batch)


class SumWithoutGradient(distributed._Sum):
    """A reduction whose gradient is not reduced."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class GatherWithoutGradient(distributed._Gather):
    """A gathering that gives back the gradient of this rank's loss alone."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.chunk(distributed.world_size())[distributed.rank()] for grad in grads)


WITHOUT_GRADIENT = {"_Sum": SumWithoutGradient, "_Gather": GatherWithoutGradient}


def local_batch(rank: int, world: int, step: int, method: Method) -> Batch:
    """This rank's part of the global batch of a step: every epoch sees the same images in other views."""
    local = slice(rank * N // world, (rank + 1) * N // world)
    return batch_of(torch.arange(N)[local] + N * (step % EPOCH_STEPS), method, step // EPOCH_STEPS)


def batch_of(index: Tensor, method: Method, epoch: int) -> Batch:
    """Views of images that depend on the image and the epoch alone; ranks have unequally many unknown labels."""
    sizes = [6] * method.large_views + [4] * method.plan.views.small_views
    draws = [torch.Generator().manual_seed(1000 * epoch + i) for i in index.tolist()]
    views = [torch.stack([torch.randn(3, s, s, generator=g, dtype=torch.double) for g in draws]) for s in sizes]
    labels = torch.tensor([0, 1, 2, 0, 1, 2, -1, 1, -1, 0, -1, -1])
    return Batch(index, views, labels[index % N])


class StandInTrainer:
    """What a method may ask of its trainer at the start of an epoch: images by position, and the precision."""

    def __init__(self, method: Method):
        self.method, self.datamodule, self.precision_plugin = method, self, self
        self.forward_context = contextlib.nullcontext

    def augmented_loader(self, rows: list[int], device: torch.device) -> Iterator[Batch]:
        size = self.method.plan.batch.batch_size
        yield from (batch_of(torch.tensor(rows[i : i + size]), self.method, 0) for i in range(0, len(rows), size))


def prepare(case: str, world: int, synchronize: bool = True) -> Method:
    """The method in float64, for two epochs of EPOCH_STEPS steps. synchronize: batch norms see the global batch."""
    name, *words = case.split()
    flags = ["--batch_size", "4", "--optimizer", "sgd", "--lr", "10"]
    given = {} if "--cluster_file" in flags_of(name) else {"images": N * EPOCH_STEPS}  # the file has its own images
    args, plan = plan_of(name, *words, *flags, **given)
    schedule = replace(plan.schedule, total_steps=STEPS, steps_per_epoch=EPOCH_STEPS, warmup_steps=0)
    plan = replace(plan, schedule=schedule, batch=BatchConfig(N // world, world, accumulate=1))
    method = construct(args, plan, backbone_of(name, Pooled, size=6, patch=2, dim=8), 8)
    if synchronize:
        synchronize_batch_norm(method, on_cuda=False)
    method._trainer = StandInTrainer(method)  # type: ignore[assignment]
    return method.double()


def train(rank: int, world: int, case: str, break_gradient: bool = False) -> dict[str, dict[str, Tensor]]:
    """Two epochs on this rank's part of the batches, under DDP where there is a process group.

    break_gradient: reduce over ranks without reducing the gradient, a common mistake that the test must detect.
    """
    with unittest.mock.patch.dict(vars(distributed), WITHOUT_GRADIENT if break_gradient else {}):
        return _train(rank, world, case)


def take_step(
    method: Method,
    losses: nn.Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
    step: int,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Tensor]:
    """A step of training with the hooks that Lightning calls; the gradients stay. losses: `Losses`, perhaps in DDP."""
    if step % EPOCH_STEPS == 0:
        method.on_train_epoch_start()
    out: dict[str, Tensor] = losses(local_batch(rank, world, step, method))
    optimizer.zero_grad()
    (out["loss"] + out["probe_loss"]).backward()
    method.on_before_optimizer_step(optimizer)
    optimizer.step()
    scheduler.step()
    method.after_optimizer_step()
    return out


def _train(rank: int, world: int, case: str) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    method = prepare(case, world)
    optimizer = method.build_optimizer()
    scheduler = build_scheduler(optimizer, method.plan.schedule)
    step_losses: nn.Module = Losses(method)
    if torch.distributed.is_initialized():
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "`broadcast_buffers` is deprecated", FutureWarning
            )  # as Lightning sets it
            step_losses = DistributedDataParallel(step_losses, broadcast_buffers=False)
    losses, gradients = {}, {}
    for step in range(STEPS):
        out = take_step(method, step_losses, optimizer, scheduler, step, rank, world)
        gradients |= {f"{step} {key}": p.grad.clone() for key, p in method.named_parameters() if p.grad is not None}
        losses |= {f"{step} {key}": mean_over_ranks(out[key].detach()) for key in ("loss", "probe_loss")}
    return {"loss": losses, "gradient": gradients, "state": dict(method.state_dict())}


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of any tensor, relative to its largest entry.

    Tensors below a ten-thousandth of the largest entry of all are compared with that, so that a tensor that is zero but
    for rounding is not divided by itself.
    """
    assert a.keys() == b.keys()
    a, b = ({k: v.double() for k, v in x.items() if v.numel()} for x in (a, b))
    floor = 1e-4 * max(v.abs().max() for v in a.values())
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=floor)) for k in a)


@functools.cache
def one_process(case: str) -> dict[str, dict[str, Tensor]]:
    """Losses, gradients and state on one process, without a process group."""
    return train(0, 1, case)


def differences(case: str, ranks: Ranks, world: int, break_gradient: bool = False) -> dict[str, float]:
    """Largest difference of any of `world` processes from one process, for "loss", "gradient" and "state"."""
    several = ranks.run(train, case, break_gradient)
    return {part: max(difference(value, each[part]) for each in several) for part, value in one_process(case).items()}


def main() -> None:
    """Print the table; exit with 1 if a difference exceeds the tolerance."""
    worst = 0.0
    print(f"{'':<38}{'processes':>9}  {'loss':>8}  {'gradient':>8}  {'2 epochs':>8}")
    with tempfile.TemporaryDirectory() as folder:
        pools = {world: Ranks(world, folder) for world in (1, 2, 3)}
        for case, world in product(every_case(), pools):
            found = differences(case, pools[world], world)
            worst = max(worst, *found.values())
            label = case if world == 1 else ""
            print(f"{label:<38}{world:>9}  " + "  ".join(f"{x:8.1e}" for x in found.values()), flush=True)
        for pool in pools.values():
            pool.close()
    print(f"largest: {worst:.1e}, allowed: {TOLERANCE:.0e}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
