"""Ranks and collectives: the only file that imports torch.distributed.

Every collective is the identity on one process and carries its gradient on several, so that a loss has no switch
for being distributed: a reduction without gradient gives the right loss and a gradient divided by the ranks.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 before and without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def launched_rank() -> int:
    """The rank that the launcher gave this process, known before the process group is: who may write files."""
    return next((int(os.environ[k]) for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), 0)


def rank_zero_print(text: str) -> None:
    """Print on the first rank only; also before the process group is formed."""
    if launched_rank() == 0:
        print(text, flush=True)


def init_process_group(cuda: bool) -> None:
    """Form a group with the processes that torchrun started beside this one, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")


def destroy_process_group() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for the other ranks."""
    if world_size() > 1:
        dist.barrier()


def broadcast_str(text: str) -> str:
    """The first rank's text, on every rank."""
    box = [text]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def all_equal(text: str) -> bool:
    """Whether every rank brings the same text."""
    box = [text] * world_size()
    if world_size() > 1:
        dist.all_gather_object(box, text)
    return len(set(box)) == 1


class _Sum(torch.autograd.Function):
    """All-reduce forward and all-reduce of the gradient backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of x over ranks, with gradient."""
    return x if world_size() == 1 else _Sum.apply(x)


def mean_over_ranks(x: Tensor) -> Tensor:
    """Average of x over ranks, with gradient."""
    return x if world_size() == 1 else _Sum.apply(x) / world_size()


def gather(x: Tensor) -> Tensor:
    """(N, ...) on each rank -> (W * N, ...) on every rank, in rank order, with gradient."""
    if world_size() == 1:
        return x
    slots = [torch.zeros_like(x) for _ in range(world_size())]
    slots[rank()] = x
    gathered: Tensor = _Sum.apply(torch.cat(slots))
    return gathered
