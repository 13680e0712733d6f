"""The two ways of the device pipeline: threads with compiled loops, and one batch ahead with the batched executor."""

import threading

import pytest
import torch

from data.pipelines.memory import CudaStreamLoader
from data.views import ViewSpec
from tests.data.test_pipelines import build, training_batches

SPECS = [ViewSpec(32, blur=0.5, solarize=0.2), ViewSpec(16, scale=(0.05, 0.3), count=2)]
CPU = torch.device("cpu")


def device(on_host=True, workers=0):
    module = build("device", specs=SPECS, workers=workers)
    module.on_host = on_host
    return module


def alive():
    return [t for t in threading.enumerate() if t.name.startswith("views")]


def test_both_ways_give_the_same_batches():
    pairs = list(zip(training_batches(device(), 2), training_batches(device(on_host=False), 2), strict=True))
    assert len(pairs) == 1438 // 16
    for a, b in pairs:
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)
        for number, (v, w) in enumerate(zip(a.views, b.views, strict=True)):
            assert ((v - w).abs() < 1e-3).float().mean() > (0.995 if number == 0 else 0.99999)  # solarize may jump


def test_both_ways_give_the_same_clean_images():
    a, b = (list(device(on_host).eval_dataloader("val", CPU)) for on_host in (True, False))
    assert [len(x.index) for x in a] == [len(x.index) for x in b] == [16] * 22 + [7]
    assert all(torch.allclose(x.views[0], y.views[0], atol=1e-4) for x, y in zip(a, b, strict=True))


def test_threads_change_nothing():
    alone, many = (list(training_batches(device(workers=n), at_most=5)) for n in (0, 3))
    assert all(
        torch.equal(v, w) for x, y in zip(alone, many, strict=True) for v, w in zip(x.views, y.views, strict=True)
    )


def test_the_next_batch_is_made_while_one_is_out(monkeypatch):
    module = device(on_host=False)
    loader = module.train_dataloader()
    assert isinstance(loader, CudaStreamLoader)
    second, made = threading.Event(), []
    on_device = loader.work.on_device

    def counted(*args):
        made.append(args)
        if len(made) == 2:
            second.set()
        return on_device(*args)

    monkeypatch.setattr(loader.work, "on_device", counted)
    batches = iter(loader)
    next(batches)
    assert second.wait(10), "the thread makes the second batch without being asked"
    assert loader.state_dict() == {"taken": 1}
    assert len(alive()) == 1
    batches.close()
    assert not alive()
    assert len(made) == 2


@pytest.mark.parametrize("on_host", [True, False])
def test_an_error_is_raised_where_its_batch_is_asked_for(on_host, monkeypatch):
    module = device(on_host, workers=1)
    loader = module.train_dataloader()

    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loader.work, "fill" if on_host else "on_device", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(iter(loader))
    assert not alive()


def test_resuming_in_the_middle_of_an_epoch():
    whole = list(training_batches(device(on_host=False), 1))
    module = device(on_host=False)
    loader = module.train_dataloader()
    module.order.set_epoch(1)
    loader.load_state_dict({"taken": 80})
    rest = list(loader)
    assert len(rest) == len(whole) - 80
    assert all(torch.equal(x.views[0], y.views[0]) for x, y in zip(rest, whole[80:], strict=True))
