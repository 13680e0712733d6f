"""Synchronized batch norm: any number of processes computes the statistics and gradients of one."""

import torch
from torch import nn

from tests.prove import difference
from utils.distributed import mean_over_ranks
from utils.sync_batchnorm import synchronize_batch_norm


def batch_norm(rank: int, world: int) -> dict:
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    layer = nn.Sequential(nn.BatchNorm1d(4)).double()
    synchronize_batch_norm(layer, on_cuda=False)
    local = x[rank * 6 // world : (rank + 1) * 6 // world].clone().requires_grad_()
    (layer(local).pow(3).sum()).backward()
    grad = {k: mean_over_ranks(p.grad) * world for k, p in layer.named_parameters()}
    layer.requires_grad_(False)
    assert not any(p.requires_grad for p in synchronize_batch_norm(nn.Sequential(layer), on_cuda=False).parameters())
    return {"grad": grad, "buffers": dict(layer.named_buffers()), "x": local.grad}


def test_batch_norm_in_evaluation_mode_stays_there():
    """A frozen teacher is converted with its student, and nothing sets its mode afterwards."""
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2)).eval())
    synchronize_batch_norm(network, on_cuda=False)
    assert [network[0].training, network[1][0].training] == [True, False]


def half_precision(rank: int, world: int) -> dict:
    """Outputs and running moments of a layer whose input has a mean of 10 standard deviations."""
    x = (torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 10).bfloat16()
    layer = nn.Sequential(nn.BatchNorm1d(4))
    synchronize_batch_norm(layer, on_cuda=False)
    out = layer(x[rank * 64 // world : (rank + 1) * 64 // world])
    return {"out": out.detach(), "mean": layer[0].running_mean, "var": layer[0].running_var}


def test_moments_of_half_precision_are_computed_in_float32(ranks):
    """As on one process, where torch's batch norm does so."""
    one = half_precision(0, 1)
    for rank, two in enumerate(ranks(2).run(half_precision)):
        assert two["out"].dtype == one["out"].dtype
        torch.testing.assert_close(two["out"], one["out"][32 * rank : 32 * (rank + 1)], rtol=0.01, atol=0.005)
        for name in ("mean", "var"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5)


def test_synchronize_batch_norm_over_processes_equals_batch_norm_on_one(ranks):
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double).requires_grad_()
    layer = nn.Sequential(nn.BatchNorm1d(4)).double()
    layer(x).pow(3).sum().backward()
    results = ranks(2).run(batch_norm)
    assert difference({"x": x.grad}, {"x": torch.cat([r["x"] for r in results])}) < 1e-12
    for result in results:
        assert difference({k: p.grad for k, p in layer.named_parameters()}, result["grad"]) < 1e-12
        assert difference(dict(layer.named_buffers()), result["buffers"]) < 1e-12
