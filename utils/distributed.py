"""Ranks and collectives: the only file that imports torch.distributed.

Every collective is the identity on one process and carries its gradient on several, so that a loss has no switch
for being distributed: a reduction without gradient gives the right loss and a gradient divided by the ranks.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes that train together; 1 before and without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def launched_rank() -> int:
    """The rank that the launcher gave this process, known before the process group is: who may write files."""
    return next((int(os.environ[k]) for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), 0)


def join(cuda: bool) -> None:
    """Form a group with the processes that torchrun started beside this one, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for the other ranks."""
    if world_size() > 1:
        dist.barrier()


def same_on_all_ranks(text: str) -> str:
    """The first rank's text, on every rank."""
    box = [text]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def alike_on_all_ranks(text: str) -> bool:
    """Whether every rank brings the same text."""
    box = [text] * world_size()
    if world_size() > 1:
        dist.all_gather_object(box, text)
    return len(set(box)) == 1


class _Sum(torch.autograd.Function):
    """All-reduce forward and all-reduce of the gradient backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
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
    return _Sum.apply(torch.cat(slots))


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the moments of the global batch, for processes on CPU, where torch's own refuses to run."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # any (N, C, ...)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x) if not self.training or world_size() == 1 else self._over_ranks(x)
        for child in self.children():  # timm's BatchNormAct carries its activation inside
            x = child(x)
        return x

    def _over_ranks(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = mean_over_ranks(x.mean(dims))  # (C,)
        var = mean_over_ranks((x - mean.view(shape)).square().mean(dims))
        if self.track_running_stats:
            self._update_running(mean.detach(), var.detach(), x.numel() // x.shape[1] * world_size())
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape) if self.affine else x

    def _update_running(self, mean: Tensor, var: Tensor, n: int) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        m = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), m)
        self.running_var.lerp_((var * n / max(n - 1, 1)).to(self.running_var.dtype), m)  # unbiased, as torch keeps it


def synchronize_batch_norm(module: nn.Module, on_cuda: bool) -> nn.Module:
    """Every batch norm of the module replaced, weights and names kept, by one that sees the global batch."""
    if on_cuda:
        from timm.layers import convert_sync_batchnorm  # torch's own would drop the activation inside BatchNormAct

        return convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            new = CPUSyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            for part, p in child.named_parameters(recurse=False):
                getattr(new, part).requires_grad_(p.requires_grad)  # a teacher's stays without gradient
            new.to(next(iter(child.state_dict().values()), torch.empty(0)))  # the same device and precision
            new.load_state_dict(child.state_dict(), strict=False)
            for part, inner in child.named_children():
                new.add_module(part, inner)
            setattr(module, name, new)
        else:
            synchronize_batch_norm(child, on_cuda)
    return module
