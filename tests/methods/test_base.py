"""The base class: probe, clipping, small views, state, for every method."""

import pytest
import torch
from torch import nn

from methods import METHODS
from tests.helpers.commands import build_method
from tests.helpers.method_cases import backbone_of, is_frozen
from tests.helpers.networks import Flat, random_batch
from utils.errors import UserError


def build(name, *words, classes=10):
    torch.manual_seed(0)
    backbone = backbone_of(name, lambda: Flat(12, 8), size=2, patch=1, dim=8)
    return build_method(name, backbone, 8, "--batch_size", "8", *words, classes=classes)


def batch(method, n=8, seed=0):
    return random_batch(n, method.large_views + method.plan.views.small_views, seed)


@pytest.mark.parametrize("name", METHODS)
def test_compute_losses_keeps_the_probe_gradient_from_the_backbone(name):
    method = build(name)
    method.compute_losses(batch(method))["probe_loss"].backward()
    for key, p in method.named_parameters():
        assert (p.grad is not None) == key.startswith("probe."), key


@pytest.mark.parametrize("name", METHODS)
def test_compute_losses_gradient_reaches_everything_but_the_probe(name):
    method = build(name)
    method.compute_losses(batch(method))["loss"].backward()
    for key, p in method.named_parameters():
        if key.startswith("probe.") or is_frozen(name, key):
            assert p.grad is None, key
        else:
            assert p.grad is not None, f"{key} is frozen by accident"
            assert torch.isfinite(p.grad).all(), key
    assert any(p.grad.abs().sum() > 0 for p in method.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_compute_losses_returns_finite_scalars(name):
    method = build(name)
    for key, value in method.compute_losses(batch(method)).items():
        assert value.ndim == 0, key
        assert torch.isfinite(value), key


@pytest.mark.parametrize("name", METHODS)
def test_method_without_labels_has_no_probe(name):
    method = build(name, classes=0)
    assert method.probe is None
    out = method.compute_losses(batch(method)._replace(labels=torch.full((8,), -1)))
    assert torch.isfinite(out["loss"])
    assert not {key for key in out if "probe" in key}


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_round_trip(name):
    a, b = build(name), build(name)
    a.compute_losses(batch(a))
    a.after_optimizer_step()
    for value in b.state_dict().values():
        value.copy_(value + 1)
    b.load_state_dict(a.state_dict())
    b.optimizer_steps = a.optimizer_steps  # which a checkpoint has beside the state
    c = batch(a, seed=1)
    assert torch.equal(a.eval().compute_losses(c)["loss"], b.eval().compute_losses(c)["loss"])


def test_probe_step_ignores_unknown_labels():
    method, feats = build("simclr"), torch.randn(6, 8)
    labels = torch.tensor([0, 1, 2, -1, -1, -1])
    method.probe[0] = nn.Identity()
    known = method.probe.losses(feats[:3], labels[:3])
    assert torch.equal(method.probe.losses(feats, labels)["probe_loss"], known["probe_loss"])
    assert method.probe.losses(feats, labels.fill_(-1))["probe_loss"] == 0


def test_gradient_clipping_bounds_the_method_and_not_the_probe():
    method = build("simclr")
    for p in method.parameters():
        p.grad = torch.full_like(p, 10.0)
    method.configure_gradient_clipping(None, 1.0, "norm")
    clipped = [p.grad for k, p in method.named_parameters() if not k.startswith("probe.")]
    assert torch.cat([g.flatten() for g in clipped]).norm().item() == pytest.approx(1.0, rel=1e-4)
    assert all((p.grad == 10).all() for p in method.probe.parameters())


def test_probe_step_counts_every_known_label_once_over_ranks(ranks):
    """Two known labels on one rank and one on the other weigh the same."""
    one, two = ranks(2).run(unevenly_labelled)
    expected = unevenly_labelled(0, 1)
    torch.testing.assert_close((one[0] + two[0]) / 2, expected[0])
    torch.testing.assert_close((one[1] + two[1]) / 2, expected[1])


def unevenly_labelled(rank, world):
    method, n = build("simclr").eval(), 6
    feats = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, -1, 2, -1, -1])
    local = slice(rank * n // world, (rank + 1) * n // world)
    loss = method.probe.losses(feats[local], labels[local])["probe_loss"]
    loss.backward()
    return loss.detach(), method.probe[1].weight.grad


@pytest.mark.parametrize("name", METHODS)
def test_small_views_are_used_or_refused(name):
    if not METHODS[name].supports_small_views:
        assert METHODS[name].no_small_views_reason
        with pytest.raises(UserError, match="--small_views 2") as e:
            build(name, "--small_views", "2")
        assert METHODS[name].no_small_views_reason in str(e.value)
        return
    method = build(name, "--small_views", "2")
    seen = batch(method)
    loss = method.compute_losses(seen)["loss"]
    for changed in range(len(seen.views)):
        views = [v + (i == changed) * torch.randn_like(v) for i, v in enumerate(seen.views)]
        assert method.compute_losses(seen._replace(views=views))["loss"] != loss, f"view {changed} plays no part"


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.supports_small_views])
def test_probe_reads_large_views_only(name):
    method = build(name, "--small_views", "2")
    probed = []
    method.probe.register_forward_hook(lambda m, args, out: probed.append(args[0]))
    seen = batch(method)
    method.compute_losses(seen)
    feats = method.forward_views(seen)
    assert torch.equal(probed[0], torch.cat([f[:8] for f in feats.evaluated or feats.large]))
    assert len(probed[0]) <= 8 * method.large_views


@pytest.mark.parametrize("name", METHODS)
def test_trainable_parameters_and_checkpoint_bytes(name):
    method = build(name, "--optimizer", "adamw")
    trained = sum(p.numel() for k, p in method.named_parameters() if not is_frozen(name, k))
    assert method.trainable_parameters() == trained
    state = sum(v.numel() * v.element_size() for v in method.state_dict().values())
    assert method.checkpoint_bytes() == state + 2 * 4 * trained


def test_val_probe_acc_is_that_of_the_known_labels_over_all_batches(monkeypatch):
    method, right, known = build("simclr").eval(), 0, 0
    for seed, labels in enumerate(([0, 1, 2, 3, 4, 5, -1, -1], [-1, 1, 1, 1, -1, -1, -1, -1])):
        seen = batch(method, seed=seed)._replace(labels=torch.tensor(labels))
        method.validation_step(seen, seed)
        predictions = method.probe(method(seen.views[0])).argmax(dim=1)
        right += int((predictions == seen.labels).sum())
        known += sum(label >= 0 for label in labels)
    logged = {}
    monkeypatch.setattr(method, "log", logged.__setitem__)
    method.on_validation_epoch_end()
    assert logged["val_probe_acc"].item() == pytest.approx(100 * right / known)
    method.validation_step(batch(method)._replace(labels=torch.full((8,), -1)), 0)
    method.on_validation_epoch_end()
    assert logged["val_probe_acc"] == 0, "the counts begin anew"
