"""Processes 1 = 2 = 3: the loss, the gradient and what three steps leave behind are those of one process."""

import pytest
import torch
from torch import nn

from methods import METHODS
from methods.base import Features
from tests.helpers import Flat, arguments
from utils.batch import Batch
from utils.distributed import mean_over_ranks, synchronize_batch_norm

N, STEPS = 12, 3


def train(rank: int, world: int, name: str) -> dict:
    """Three steps of momentum SGD on this rank's share of the batches, as DDP does them: gradients averaged."""
    torch.manual_seed(0)
    method = METHODS[name](arguments(name, "--batch_size", str(N // 3)), Flat(12), 6)
    synchronize_batch_norm(method, on_cuda=False)
    method.double()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    out: dict = {"loss": [], "gradient": {}}
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step)
        mine = slice(rank * N // world, (rank + 1) * N // world)
        views = [torch.randn(N, 3, 2, 2, generator=g, dtype=torch.double)[mine] for _ in range(2)]
        batch = method.prepare(Batch(torch.arange(N)[mine], views, (torch.arange(N) % 10)[mine]))
        loss = method.training_loss(Features([method(v) for v in batch.views], []), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        for key, p in method.named_parameters():
            if p.grad is not None:
                p.grad = mean_over_ranks(p.grad)
                out["gradient"][f"{step} {key}"] = p.grad.clone()
        optimizer.step()
        method.queue.flush() if hasattr(method, "queue") else None
        out["loss"].append(mean_over_ranks(loss.detach()))
    out["state"] = method.state_dict()
    return out


def difference(a: dict, b: dict) -> float:
    """Largest difference, relative to the largest entry of the tensor."""
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max() / a[k].double().abs().max().clamp(min=1)) for k in a)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_any_number_of_processes_computes_the_same(name, world, ranks):
    alone = train(0, 1, name)
    for result in ranks(world).run(train, name):
        assert difference(dict(enumerate(alone["loss"])), dict(enumerate(result["loss"]))) < 1e-9
        assert difference(alone["gradient"], result["gradient"]) < 1e-9
        assert difference(alone["state"], result["state"]) < 1e-9, "parameters, buffers or queue rows differ"


def batch_norm(rank: int, world: int) -> dict:
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    layer = nn.Sequential(nn.BatchNorm1d(4)).double()
    synchronize_batch_norm(layer, on_cuda=False)
    mine = x[rank * 6 // world : (rank + 1) * 6 // world].clone().requires_grad_()
    (layer(mine).pow(3).sum()).backward()
    grad = {k: mean_over_ranks(p.grad) * world for k, p in layer.named_parameters()}
    return {"grad": grad, "buffers": dict(layer.named_buffers()), "x": mine.grad}


def test_batch_norm_over_processes_is_torchs_own_on_one(ranks):
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double).requires_grad_()
    layer = nn.Sequential(nn.BatchNorm1d(4)).double()
    layer(x).pow(3).sum().backward()
    results = ranks(2).run(batch_norm)
    assert difference({"x": x.grad}, {"x": torch.cat([r["x"] for r in results])}) < 1e-12
    for result in results:
        assert difference({k: p.grad for k, p in layer.named_parameters()}, result["grad"]) < 1e-12
        assert difference(dict(layer.named_buffers()), result["buffers"]) < 1e-12
