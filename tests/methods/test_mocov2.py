"""MoCo v2 against its equation, written as loops, and against lightly's loss; its key network and its queues."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from methods.mocov2 import mocov2_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch, random_views
from utils import row_chunks
from utils.errors import UserError

DOUBLE = {"rtol": 0, "atol": 1e-11}


def unit(n, d, seed=0):
    return F.normalize(random_views(1, n, d, seed)[0], dim=1)


def naive_mocov2(pairs, t):
    """Eq. 1, one query and one negative at a time; mean over queries and over pairs."""
    values = []
    for q, k, rows in pairs:
        for i in range(len(q)):
            positive = math.exp(float(q[i] @ k[i]) / t)
            negatives = sum(math.exp(float(q[i] @ rows[r]) / t) for r in range(len(rows)))
            values.append(-math.log(positive / (positive + negatives)))
    return torch.tensor(sum(values) / len(values), dtype=torch.double)


def draw(pairs, n=5, d=6, rows=7):
    return [(unit(n, d, 3 * i), unit(n, d, 3 * i + 1), unit(rows, d, 3 * i + 2)) for i in range(pairs)]


@pytest.mark.parametrize("pairs", [1, 2, 4])
@pytest.mark.parametrize("t", [0.07, 0.2, 1.0])
def test_mocov2_loss_agrees_with_the_formula(pairs, t):
    assert_close(mocov2_loss(draw(pairs), t)["loss"], naive_mocov2(draw(pairs), t), **DOUBLE)


def test_mocov2_loss_of_identical_vectors_is_the_log_of_the_number_of_choices():
    one = F.normalize(torch.ones(5, 4, dtype=torch.double), dim=1)
    out = mocov2_loss([(one, one, one.repeat(3, 1))], 0.2)
    assert out["loss"].item() == pytest.approx(math.log(1 + 15))
    assert out["key_acc"] == 0, "no key is more similar than the rows"


def test_mocov2_loss_of_known_angles():
    """The key at 60 degrees of its query, one row of the queue at 90 degrees and one opposite to it."""
    q = torch.tensor([[1.0, 0]], dtype=torch.double)
    k = torch.tensor([[0.5, 0.75**0.5]], dtype=torch.double)
    rows = torch.tensor([[0.0, 1], [-1, 0]], dtype=torch.double)
    out = mocov2_loss([(q, k, rows)], 0.5)
    assert out["loss"].item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-3)))
    assert out["positive_similarity"].item() == pytest.approx(0.5)
    assert out["key_acc"] == 100


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), t=st.floats(0.05, 2.0))
@settings(max_examples=15, deadline=None)
def test_mocov2_loss_ignores_order_of_images_and_rows_and_a_rotation_and_has_a_lower_bound(seed, n, t):
    q, k, rows = unit(n, 4, seed), unit(n, 4, seed + 1), unit(9, 4, seed + 2)
    loss = mocov2_loss([(q, k, rows)], t)["loss"]
    g = torch.Generator().manual_seed(seed)
    images, order = torch.randperm(n, generator=g), torch.randperm(9, generator=g)
    assert_close(mocov2_loss([(q[images], k[images], rows[order])], t)["loss"], loss)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double, generator=g)).Q
    assert_close(mocov2_loss([(q @ rotation, k @ rotation, rows @ rotation)], t)["loss"], loss)
    assert loss >= math.log1p(9 * math.exp(-2 / t)) - 1e-12, "nothing is better than all rows opposite"


def test_mocov2_loss_gradient_is_that_of_the_queries_alone():
    (q, k, rows), (q2, k2, rows2) = draw(2, n=3, d=4)
    queries = [x.requires_grad_() for x in (q, q2)]
    assert torch.autograd.gradcheck(lambda a, b: mocov2_loss([(a, k, rows), (b, k2, rows2)], 0.5)["loss"], queries)
    k.requires_grad_()
    mocov2_loss([(q, k, rows)], 0.5)["loss"].backward()
    assert k.grad is None


@pytest.mark.parametrize("size", [1, 2])
def test_mocov2_loss_in_chunks_is_that_of_the_full_matrix(size, monkeypatch):
    pairs = [(q.requires_grad_(), k, rows) for q, k, rows in draw(2)]
    full = mocov2_loss(pairs, 0.2)
    gradients = torch.autograd.grad(full["loss"], [q for q, _, _ in pairs])
    monkeypatch.setattr(row_chunks, "MAX_ENTRIES", size * 2 * 7)
    chunked = mocov2_loss(pairs, 0.2)
    assert_close(chunked, full, **DOUBLE)
    for a, b in zip(torch.autograd.grad(chunked["loss"], [q for q, _, _ in pairs]), gradients, strict=True):
        assert_close(a, b, **DOUBLE)


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_mocov2_loss_and_gradient_agree_with_lightly(t):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    own, other = (random_views(1, 6, 8)[0].requires_grad_() for _ in range(2))
    k, rows = unit(6, 8, 1), unit(20, 8, 2)
    reference = lightly.NTXentLoss(temperature=t, memory_bank_size=(20, 8))
    reference.memory_bank.bank = rows.clone()
    expected = reference(other, k)
    loss = mocov2_loss([(F.normalize(own, dim=1), k, rows)], t)["loss"]
    assert_close(loss, expected, rtol=0, atol=1e-6)
    loss.backward()
    expected.backward()
    assert_close(own.grad, other.grad, rtol=0, atol=1e-6)


def build(*words):
    torch.manual_seed(0)
    method = build_method("mocov2", Flat(12), 6, "--batch_size", "4", *words).double()
    for p in method.target.teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return method


def expected_pairs(method, batch, symmetric):
    """(query view, key view, queue) in the words of the paper, with networks and queues as they are now."""
    q = [F.normalize(method.projector(method.backbone(v)), dim=1).detach() for v in batch.views]
    k = [F.normalize(method.target.teacher(v), dim=1) for v in batch.views[:2]]
    if not symmetric:
        return [(q[i], k[1], method.queues[0].rows.clone()) for i in range(len(q)) if i != 1]
    return [(q[i], k[j], method.queues[j].rows.clone()) for j in range(2) for i in range(len(q)) if i != j]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("small", [0, 2])
def test_training_loss_compares_queries_with_keys_of_another_view_and_of_earlier_batches(symmetric, small):
    method = build("--small_views", str(small), *["--symmetric"] * symmetric)
    batch = random_batch(4, 2 + small, dtype=torch.double)
    pairs = expected_pairs(method, batch, symmetric)
    assert len(pairs) == (2 if symmetric else 1) * (1 + small)
    out = method.compute_losses(batch)
    assert_close(out["loss"], naive_mocov2(pairs, 0.2), **DOUBLE)
    out["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    assert all(p.grad is not None for p in [*method.backbone.parameters(), *method.projector.parameters()])


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_queue_takes_the_keys_of_its_view_after_the_loss_of_the_batch(symmetric):
    method = build(*["--symmetric"] * symmetric)
    batch = random_batch(4, 2, dtype=torch.double)
    keys = [F.normalize(method.target.teacher(v), dim=1) for v in batch.views][0 if symmetric else 1 :]
    before = [queue.rows.clone() for queue in method.queues]
    assert len(before) == len(keys)
    method.compute_losses(batch)
    assert all(torch.equal(queue.rows, rows) for queue, rows in zip(method.queues, before, strict=True))
    method.after_optimizer_step()
    for queue, rows, k in zip(method.queues, before, keys, strict=True):
        assert_close(queue.rows[:4], k)
        assert torch.equal(queue.rows[4:], rows[4:])
    assert not symmetric or not torch.equal(before[0], before[1]), "the random rows of the queues differ"


def test_second_view_of_the_asymmetric_loss_is_seen_by_the_key_network_alone():
    method, batch = build(), random_batch(4, 2, dtype=torch.double)
    method.compute_losses(batch)
    (own,) = (m for m in method.backbone.modules() if isinstance(m, nn.BatchNorm1d))
    (keys,) = (m for m in method.target.modules() if isinstance(m, nn.BatchNorm1d))
    assert own.num_batches_tracked == keys.num_batches_tracked == 1
    changed = batch._replace(views=[batch.views[0], batch.views[1] + 1])
    assert method.compute_losses(changed)["loss"] != method.compute_losses(batch)["loss"]


def test_key_network_follows_with_a_constant_decay_of_parameters_alone():
    method = build("--tau", "0.9")
    batch = random_batch(4, 2, dtype=torch.double)
    method.compute_losses(batch)
    assert method.target.teacher.training, "batch norm of the keys has the statistics of their batch"
    before = {name: value.clone() for name, value in method.target.teacher.state_dict().items()}
    with torch.no_grad():
        for p in method.parameters():
            p.add_(1.0)
    student = nn.Sequential(method.backbone, method.projector)
    parameters = dict(student.named_parameters())
    before |= {name: value.clone() for name, value in method.target.teacher.state_dict().items()}
    method.optimizer_steps = method.plan.schedule.total_steps // 2
    method.after_optimizer_step()
    for name, value in method.target.teacher.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * parameters[name] if name in parameters else before[name]
        assert_close(value, expected, msg=name)


def test_head_has_biases_and_no_norm():
    assert [type(m) for m in build().projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(m.bias is not None for m in build().projector if isinstance(m, nn.Linear))


def test_loss_at_chance_has_the_queue_and_the_key_as_choices():
    assert build("--queue_size", "50").num_choices == 51


def test_queue_smaller_than_the_global_batch_is_an_error():
    with pytest.raises(UserError, match=r"--queue_size 40 .* 64"):
        build_method("mocov2", Flat(12), 6, "--batch_size", "32", "--accumulate", "2")
