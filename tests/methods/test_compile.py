"""A compiled training step is one graph: no graph break, nothing compiled twice, the losses and gradients of eager."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

import main_contrastive
from backbones.build import build_backbone
from methods import METHODS
from tests.helpers.commands import TINY, build_method, small
from tests.helpers.method_cases import backbone_of
from tests.helpers.networks import Flat, random_batch
from utils.batch import Batch
from utils.plan import BackboneConfig

VARIANTS = [
    ["simclr"],
    ["nnclr"],
    *(
        pytest.param(words, marks=pytest.mark.slow)
        for words in [
            *([name] for name in METHODS if name not in ("simclr", "nnclr")),
            ["simclr", "--supervised"],
            *([name, "--small_views", "1"] for name in METHODS if METHODS[name].supports_small_views),
        ]
    ),
]


@pytest.fixture
def one_graph(monkeypatch):
    """backend -> let torch.compile use it and refuse graph breaks; returns a function that counts the graphs."""
    torch._dynamo.reset()
    counters.clear()

    def use(backend):
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
        return lambda: counters["stats"]["unique_graphs"]

    yield use
    torch._dynamo.reset()


def steps(method, batches, precision=torch.float32):
    """Losses of one optimizer step per batch, the last one's gradients, and the state after all of them."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = method.compute_losses(batch)
        (out["loss"] + out["probe_loss"]).backward()
        optimizer.step()
        method.after_optimizer_step()
        losses.append({key: value.detach() for key, value in out.items()})
    return losses, {name: p.grad for name, p in method.named_parameters()}, method.state_dict()


def assert_compiled_equals_eager(one_graph, build, batches, backend, precision=torch.float32, only_first=False):
    """Both are built with the same weights; batches of equal shapes need one graph.

    only_first: compare the losses of the first step; rounding changes what a large network does after it.
    """
    graphs = one_graph(backend)
    eager, compiled = build(), build()
    compiled.load_state_dict(eager.state_dict())
    compiled.compile_losses()
    found, expected = (steps(method, batches, precision) for method in (compiled, eager))
    if only_first:
        torch.testing.assert_close(found[0][0]["loss"], expected[0][0]["loss"], rtol=0.02, atol=0.02)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert graphs() == 1


@pytest.mark.parametrize("words", VARIANTS, ids=" ".join)
def test_compile_losses_makes_one_graph_of_a_step(one_graph, words):
    def build():
        backbone = backbone_of(words[0], lambda: Flat(12, 8), size=2, patch=1, dim=8)
        return build_method(words[0], backbone, 8, "--batch_size", "8", *words[1:])

    method = build()
    views = method.large_views + method.plan.views.small_views
    batches = [random_batch(8, views, seed) for seed in range(3)]
    assert_compiled_equals_eager(one_graph, build, batches, "eager")


@pytest.mark.slow  # numba compiles the views too
def test_compile_losses_compiles_nothing_for_evaluation_and_two_sizes(one_graph, few, tmp_path, no_embedding):
    """A whole run with views of two sizes, validation, kNN, and an incomplete last batch: one graph."""
    graphs = one_graph("eager")
    main_contrastive.main(["custom", *TINY[1:], *few, "--method", "simclr", *small("simclr"), "--small_views", "1",
                           "--small_size", "8", "--epochs", "2", "--optimizer", "sgd", "--knn_every", "1",
                           "--batch_size", "16", "--train_dir", "train", "--val_dir", "val", "--compile",
                           "--output", str(tmp_path), "--run_id", "r"])  # fmt: skip
    assert graphs() == 1


def resnet18(name):
    """The method on a ResNet-18 with the 3x3 stem, or the transformer that it needs, and two batches of 4 images."""
    backbone = backbone_of(name, lambda: build_backbone(BackboneConfig("resnet18", "small"), 32)[0], 32, 8, 512)
    method = build_method(name, backbone, 512, "--batch_size", "4")
    draw = torch.Generator().manual_seed(0)
    views = [[torch.randn(4, 3, 32, 32, generator=draw) for _ in range(method.large_views)] for _ in range(2)]
    return method, [Batch(torch.arange(4), v, torch.arange(4)) for v in views]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_compile_losses_of_a_resnet_in_bf16_through_autograd(one_graph, name):
    """aot_eager traces the backward pass too, with autocast inside, and leaves out code generation alone."""
    _, batches = resnet18(name)
    torch.manual_seed(0)
    assert_compiled_equals_eager(
        one_graph, lambda: resnet18(name)[0], batches, "aot_eager", torch.bfloat16, only_first=True
    )


@pytest.mark.slow
def test_compile_losses_by_inductor_equals_eager(one_graph):
    _, batches = resnet18("simclr")
    torch.manual_seed(0)
    assert_compiled_equals_eager(one_graph, lambda: resnet18("simclr")[0], batches, "inductor", only_first=True)
