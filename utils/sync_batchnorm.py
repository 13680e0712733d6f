"""Batch norm over the global batch, on CUDA and on CPU."""

import torch
from torch import Tensor, nn

from utils.distributed import mean_over_ranks, world_size
from utils.precision import at_least_float32


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
        """x, normalized by the moments of all processes, which are computed in float32 as torch does on one process."""
        dtype, x = x.dtype, at_least_float32(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = mean_over_ranks(x.mean(dims))  # (C,)
        var = mean_over_ranks((x - mean.view(shape)).square().mean(dims))
        if self.track_running_stats:
            self._update_running(mean.detach(), var.detach(), x.numel() // x.shape[1] * world_size())
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return (x * self.weight.view(shape) + self.bias.view(shape) if self.affine else x).to(dtype)

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

        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
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
            new.training = child.training  # a frozen network stays in evaluation mode
            setattr(module, name, new)
        else:
            synchronize_batch_norm(child, on_cuda)
    return module
