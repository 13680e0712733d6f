"""What every method promises through the base class."""

import pytest
import torch
from torch import nn

from methods import METHODS
from methods.base import Features
from tests.helpers import Flat, arguments
from utils.batch import Batch


def build(name, *words, classes=10):
    torch.manual_seed(0)
    return METHODS[name](arguments(name, "--batch_size", "8", *words, classes=classes), Flat(12), 6)


def batch(n=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.arange(n), [torch.randn(n, 3, 2, 2, generator=g) for _ in range(2)], torch.arange(n) % 10)


def losses(method, b):
    b = method.prepare(b)
    feats = [method(v) for v in b.views]
    out = method.training_loss(Features(feats, []), b)
    return out, method._probe_step(torch.cat(feats), b.labels.repeat(2)) if method.probe is not None else {}


@pytest.mark.parametrize("name", METHODS)
def test_the_probes_gradient_never_reaches_the_backbone(name):
    method = build(name)
    _, probe = losses(method, batch())
    probe["probe_loss"].backward()
    for key, p in method.named_parameters():
        assert (p.grad is not None) == key.startswith("probe."), key


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_gradient_reaches_everything_but_the_probe(name):
    method = build(name)
    losses(method, batch())[0]["loss"].backward()
    for key, p in method.named_parameters():
        if key.startswith("probe."):
            assert p.grad is None, key
        else:
            assert p.grad is not None, f"{key} is frozen by accident"
            assert torch.isfinite(p.grad).all(), key
    assert any(p.grad.abs().sum() > 0 for p in method.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_everything_logged_is_a_finite_number(name):
    out, probe = losses(build(name), batch())
    for key, value in (out | probe).items():
        assert value.ndim == 0, key
        assert torch.isfinite(value), key


@pytest.mark.parametrize("name", METHODS)
def test_without_labels_there_is_no_probe(name):
    method = build(name, classes=0)
    assert method.probe is None
    out, _ = losses(method, batch()._replace(labels=torch.full((8,), -1)))
    assert torch.isfinite(out["loss"])


@pytest.mark.parametrize("name", METHODS)
def test_state_round_trip(name):
    a, b = build(name), build(name, "--seed", "3")
    losses(a, batch())
    b.load_state_dict(a.state_dict())
    assert torch.equal(losses(a.eval(), batch(seed=1))[0]["loss"], losses(b.eval(), batch(seed=1))[0]["loss"])


def test_probe_ignores_unknown_labels():
    method, feats = build("simclr"), torch.randn(6, 6)
    labels = torch.tensor([0, 1, 2, -1, -1, -1])
    method.probe[0] = nn.Identity()
    known = method._probe_step(feats[:3], labels[:3])
    assert torch.equal(method._probe_step(feats, labels)["probe_loss"], known["probe_loss"])
    assert method._probe_step(feats, labels.fill_(-1))["probe_loss"] == 0


def test_clipping_bounds_the_method_and_not_the_probe():
    method = build("simclr")
    for p in method.parameters():
        p.grad = torch.full_like(p, 10.0)
    method.configure_gradient_clipping(None, 1.0, "norm")
    mine = [p.grad for k, p in method.named_parameters() if not k.startswith("probe.")]
    assert torch.cat([g.flatten() for g in mine]).norm().item() == pytest.approx(1.0, rel=1e-4)
    assert all((p.grad == 10).all() for p in method.probe.parameters())
