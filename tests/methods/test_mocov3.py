"""MoCo v3 against its equation, written as loops, and its heads and frozen patch embedding by type of backbone."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from methods.mocov3 import MoCoV3, mocov3_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch, random_views
from utils import row_chunks
from utils.errors import UserError

DOUBLE = {"rtol": 0, "atol": 1e-11}


def unit(views, n, d, seed=0):
    return [F.normalize(view, dim=1) for view in random_views(views, n, d, seed)]


def naive_mocov3(q, k, t):
    """Alg. 1, one query and one key at a time; the sum of the two directions is twice the mean over pairs of views."""
    values = []
    for j in range(2):
        for i in range(len(q)):
            for a in range(len(k[j])) if i != j else []:
                scores = [math.exp(float(q[i][a] @ k[j][b]) / t) for b in range(len(k[j]))]
                values.append(-2 * t * math.log(scores[a] / sum(scores)))
    return torch.tensor(2 * sum(values) / len(values), dtype=torch.double)


@pytest.mark.parametrize("views", [2, 3, 6])
@pytest.mark.parametrize("t", [0.2, 1.0])
def test_mocov3_loss_agrees_with_the_formula(views, t):
    q, k = unit(views, 5, 6, 1), unit(2, 5, 6, 2)
    assert_close(mocov3_loss(q, k, t)["loss"], naive_mocov3(q, k, t), **DOUBLE)


def test_mocov3_loss_of_two_views_is_the_sum_of_both_directions():
    q, k = unit(2, 5, 6, 1), unit(2, 5, 6, 2)
    own = torch.arange(5)
    expected = F.cross_entropy(q[0] @ k[1].T / 0.2, own) + F.cross_entropy(q[1] @ k[0].T / 0.2, own)
    assert_close(mocov3_loss(q, k, 0.2)["loss"], 2 * 0.2 * expected, **DOUBLE)


@pytest.mark.parametrize("t", [0.2, 1.0])
def test_mocov3_loss_of_identical_vectors_is_four_times_the_temperature_times_the_log_of_the_batch(t):
    one = [F.normalize(torch.ones(6, 4, dtype=torch.double), dim=1)] * 2
    assert mocov3_loss(one, one, t)["loss"].item() == pytest.approx(4 * t * math.log(6))


def test_mocov3_loss_of_orthogonal_images():
    """Each prediction is its key, and all other keys are at right angles."""
    eye = [torch.eye(4, dtype=torch.double)] * 2
    out = mocov3_loss(eye, eye, 0.5)
    assert out["loss"].item() == pytest.approx(2 * math.log(1 + 3 * math.exp(-2)))
    assert (out["positive_similarity"], out["key_acc"]) == (1, 100)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 7), small=st.integers(0, 2), t=st.floats(0.05, 2.0))
@settings(max_examples=15, deadline=None)
def test_mocov3_loss_ignores_order_of_images_and_views_and_a_rotation_and_has_a_lower_bound(seed, n, small, t):
    q, k = unit(2 + small, n, 5, seed), unit(2, n, 5, seed + 1)
    loss = mocov3_loss(q, k, t)["loss"]
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=g)
    assert_close(mocov3_loss([x[order] for x in q], [x[order] for x in k], t)["loss"], loss)
    assert_close(mocov3_loss([q[1], q[0], *q[2:]], k[::-1], t)["loss"], loss)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double, generator=g)).Q
    assert_close(mocov3_loss([x @ rotation for x in q], [x @ rotation for x in k], t)["loss"], loss)
    assert loss >= 4 * t * math.log1p((n - 1) * math.exp(-2 / t)) - 1e-12, "nothing is better than all others opposite"


def test_mocov3_loss_gradient_is_that_of_the_predictions_alone():
    q, k = [x.requires_grad_() for x in unit(3, 4, 3, 1)], unit(2, 4, 3, 2)
    assert torch.autograd.gradcheck(lambda *q: mocov3_loss(list(q), k, 0.5)["loss"], q)
    keys = [x.requires_grad_() for x in k]
    mocov3_loss(q, keys, 0.5)["loss"].backward()
    assert all(x.grad is None for x in keys)


@pytest.mark.parametrize("size", [1, 3])
def test_mocov3_loss_in_chunks_is_that_of_the_full_matrix(size, monkeypatch):
    q, k = [x.requires_grad_() for x in unit(2, 5, 6, 1)], unit(2, 5, 6, 2)
    full = mocov3_loss(q, k, 0.2)
    gradients = torch.autograd.grad(full["loss"], q)
    monkeypatch.setattr(row_chunks, "MAX_ENTRIES", size * 2 * 5)
    chunked = mocov3_loss(q, k, 0.2)
    assert_close(chunked, full, **DOUBLE)
    for a, b in zip(torch.autograd.grad(chunked["loss"], q), gradients, strict=True):
        assert_close(a, b, **DOUBLE)


@pytest.mark.parametrize("small", [0, 2])
def test_training_loss_compares_predictions_with_the_key_network(small):
    torch.manual_seed(0)
    method = build_method("mocov3", Flat(12), 6, "--batch_size", "8", "--small_views", str(small)).double()
    for p in method.target.teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    batch = random_batch(8, 2 + small, dtype=torch.double)
    q = [F.normalize(method.predictor(method.projector(method.backbone(v))), dim=1).detach() for v in batch.views]
    k = [F.normalize(method.target.teacher(v), dim=1) for v in batch.views[:2]]
    out = method.compute_losses(batch)
    assert_close(out["loss"], naive_mocov3(q, k, 1.0), **DOUBLE)
    out["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


def layers(network):
    """Linear layers of a head as (bias), norms as "affine" or "plain"."""
    found = []
    for m in network:
        if isinstance(m, nn.Linear):
            found.append("bias" if m.bias is not None else "linear")
        elif isinstance(m, nn.BatchNorm1d):
            found.append("affine" if m.affine else "plain")
    return found


def vit(*words):
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit.r160_in1k", img_size=32, num_classes=0)
    return build_method("mocov3", backbone, 64, *words)


def test_heads_of_a_resnet_and_of_a_vision_transformer_are_those_of_the_official_code():
    resnet = build_method("mocov3", Flat(12), 6)
    assert layers(resnet.projector) == ["linear", "affine", "linear", "plain"]
    assert layers(resnet.predictor) == ["linear", "affine", "linear"]
    assert layers(vit().projector) == ["linear", "affine", "linear", "affine", "linear", "plain"]
    assert layers(vit().predictor) == ["linear", "affine", "linear", "plain"]


def test_patch_embedding_of_a_vision_transformer_is_frozen_unless_a_flag_says_otherwise():
    for words, frozen in (([], True), (["--no_freeze_patch_embedding"], False)):
        method = vit("--batch_size", "2", *words)
        batch = random_batch(2, 2)
        views = [torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        method.compute_losses(batch._replace(views=views))["loss"].backward()
        for name, p in method.backbone.named_parameters():
            assert p.requires_grad != (frozen and name.startswith("patch_embed.")), name
            assert (p.grad is not None) == p.requires_grad, name


def test_flag_for_the_patch_embedding_of_a_convolutional_network_is_an_error():
    with pytest.raises(UserError, match="--no_freeze_patch_embedding needs a vision transformer.*test_resnet"):
        build_method("mocov3", Flat(12), 6, "--no_freeze_patch_embedding")


def test_length_defaults_are_those_of_the_official_code():
    assert MoCoV3.length_defaults(100) == {"tau": 0.99, "lr": 0.6, "weight_decay": 1e-6}
    assert MoCoV3.length_defaults(300) == {"tau": 0.99, "lr": 0.3, "weight_decay": 1e-6}
    assert MoCoV3.length_defaults(1000) == {"tau": 0.996, "lr": 0.3, "weight_decay": 1.5e-6}
