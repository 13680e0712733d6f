"""SwAV against its formula, written as loops, lightly's loss, and the order of codes and queue."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from methods.swav import swav_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch
from utils.errors import UserError
from utils.sinkhorn import sinkhorn


def cosines(views, n, k, seed=0):
    """`views` float64 tensors (n, k) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(views, n, k, dtype=torch.double, generator=generator) * 2 - 1)


def naive_codes(scores, epsilon=0.05, iterations=3):
    """Codes of the rows of `scores` by loops: prototypes share the rows equally, then each row sums to 1."""
    q = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    for _ in range(iterations):
        mass = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[x / m for x, m in zip(row, mass, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return q


def naive_swav(scores, codes, t):
    """Eq. 2 for every view and the code of another, large one, a term at a time; codes: nested lists."""
    pairs = [(i, v) for i in range(len(codes)) for v in range(len(scores)) if v != i]
    total = 0.0
    for i, v in pairs:
        for q, s in zip(codes[i], scores[v].tolist(), strict=True):
            normalizer = sum(math.exp(x / t) for x in s)
            total -= sum(a * math.log(math.exp(x / t) / normalizer) for a, x in zip(q, s, strict=True)) / len(scores[v])
    return total / len(pairs)


@pytest.mark.parametrize("views", [2, 3, 8])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("t", [0.1, 0.5])
def test_swav_loss_agrees_with_the_formula(views, n, t):
    scores = cosines(views, n, 6)
    codes = [naive_codes(s) for s in scores[:2]]
    loss = swav_loss(scores, [torch.tensor(q, dtype=torch.double) for q in codes], t)
    assert loss.item() == pytest.approx(naive_swav(scores, codes, t), abs=1e-12)


def test_swav_loss_of_equal_scores_is_the_log_of_the_prototypes():
    scores = [torch.zeros(4, 7, dtype=torch.double)] * 3
    assert swav_loss(scores, [sinkhorn(s, 0.05, 3) for s in scores[:2]], 0.1).item() == pytest.approx(math.log(7))


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), k=st.integers(2, 9), shift=st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_swav_loss_ignores_order_and_a_constant(seed, n, k, shift):
    def loss(scores):
        return swav_loss(scores, [sinkhorn(s, 0.05, 3) for s in scores[:2]], 0.1)

    scores, order = cosines(4, n, k, seed), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    first = loss(scores)
    assert_close(loss([s[order] for s in scores]), first)
    assert_close(loss([scores[1], scores[0], scores[3], scores[2]]), first)
    assert_close(loss([s + shift for s in scores]), first)
    prototypes = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    assert_close(loss([s[:, prototypes] for s in scores]), first)


def test_swav_loss_gradient_agrees_with_finite_differences():
    codes = [torch.tensor(naive_codes(s), dtype=torch.double) for s in cosines(2, 3, 4, seed=1)]
    scores = [s.requires_grad_() for s in cosines(3, 3, 4)]
    assert torch.autograd.gradcheck(lambda *x: swav_loss(list(x), codes, 0.1), scores)


@pytest.mark.parametrize("small", [0, 3])
@pytest.mark.parametrize("queue", [0, 8])
def test_swav_loss_and_gradient_agree_with_lightly(small, queue):
    lightly = pytest.importorskip("lightly.loss", reason="needs lightly: pip install -r requirements-dev.txt")
    scores, rows = cosines(2 + small, 5, 6), cosines(2, queue, 6, seed=1)
    ours, theirs = ([s.clone().requires_grad_() for s in scores] for _ in range(2))
    codes = [sinkhorn(torch.cat([s, r]), 0.05, 3)[:5] for s, r in zip(ours, rows, strict=False)]
    loss = swav_loss(ours, codes, 0.1)
    expected = lightly.SwaVLoss(0.1, 3, 0.05)(theirs[:2], theirs[2:], rows if queue else None)
    assert_close(loss, expected[0], rtol=0, atol=1e-6)
    for a, b in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected[0], theirs), strict=True):
        assert_close(a, b, rtol=0, atol=1e-6)


def build(*words, **plan):
    torch.manual_seed(0)
    words = [
        "--batch_size",
        "4",
        "--num_prototypes",
        "5",
        *([] if "--queue_size" in words else ["--queue_size", "0"]),
        *words,
    ]
    return build_method("swav", Flat(12), 6, *words, **plan).double()


def scores_of(method, x):
    """Cosines of embeddings and prototypes, from the weights themselves."""
    weights = next(method.prototypes.parameters())
    return F.normalize(x, dim=1) @ F.normalize(weights.detach(), dim=1).T


@pytest.mark.parametrize("small", [0, 2])
def test_training_loss_predicts_the_codes_of_the_large_views_from_every_other_view(small):
    method = build(*(["--small_views", str(small)] if small else []))
    batch = random_batch(4, 2 + small, dtype=torch.double)
    out = method.compute_losses(batch)
    scores = [scores_of(method, method.projector(method(v)).detach()) for v in batch.views]
    expected = naive_swav(scores, [naive_codes(s) for s in scores[:2]], 0.1)
    assert out["loss"].item() == pytest.approx(expected, abs=1e-10)
    assert 0.25 <= out["distinct_prototypes"] <= 1
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.prototypes.parameters())


def test_codes_take_in_the_full_queue_before_the_batch_enters_it():
    """A queue of two batches fills from the first step on, and its rows are scored with the present prototypes."""
    method = build("--queue_size", "8", "--queue_start_epoch", "0")
    for step in range(4):
        batch = random_batch(4, 2, seed=step, dtype=torch.double)
        rows = [queue.rows.clone() for queue in method.queue]
        out = method.compute_losses(batch)
        z = [F.normalize(method.projector(method(v)), dim=1).detach() for v in batch.views]
        scores = [scores_of(method, x) for x in z]
        assigned = [torch.cat([s, scores_of(method, r)]) if step >= 2 else s for s, r in zip(scores, rows, strict=True)]
        expected = naive_swav(scores, [naive_codes(s)[:4] for s in assigned], 0.1)
        assert out["loss"].item() == pytest.approx(expected, abs=1e-10)
        assert all(torch.equal(queue.rows, r) for queue, r in zip(method.queue, rows, strict=True)), "moved by the loss"
        method.after_optimizer_step()
        for queue, x in zip(method.queue, z, strict=True):
            assert_close(queue.rows[4 * (step % 2) : 4 * (step % 2) + 4], x, rtol=0, atol=1e-6)
        with torch.no_grad():
            next(method.prototypes.parameters()).add_(0.1)


def test_queue_fills_from_its_first_epoch_and_is_used_when_it_is_full():
    """20 images are 5 steps of an epoch: empty up to step 9, filling at 10 and 11, in use from 12 on."""
    method = build("--queue_size", "8", "--queue_start_epoch", "2", images=20)
    states = []
    for _ in range(14):
        method.compute_losses(random_batch(4, 2, dtype=torch.double))
        states.append(int(method.queue_state.number))
        assert (method.queue[0]._pending == []) == (states[-1] == 0)
        method.after_optimizer_step()
    assert states == [0] * 10 + [1] * 2 + [2] * 2


@pytest.mark.parametrize("size", [12, 20, 24, 50, 54])
def test_queue_is_used_when_accumulated_steps_have_brought_as_many_rows(size):
    """An epoch has 7 batches of 4 images, 2 to a step: steps of 8, 8, 8 and 4 rows."""
    method = build("--queue_size", str(size), "--queue_start_epoch", "0", "--accumulate", "2", images=30)
    brought, used = 0, []
    for step in range(10):
        method.optimizer_steps = step
        method.queue_state.update(method.epoch, method.progress)
        used.append(method.queue_state.number == 2)
        assert used[-1] == (brought >= size)
        brought += 4 if step % 4 == 3 else 8
    assert used[0] != used[-1]


def test_prototypes_are_frozen_at_first():
    method = build("--freeze_prototypes_epochs", "2")
    prototypes = {id(p) for p in method.prototypes.parameters()}
    groups = method.build_optimizer().param_groups
    frozen = [group["frozen_epochs"] for group in groups if {id(p) for p in group["params"]} & prototypes]
    assert frozen == [2]
    others = [group["frozen_epochs"] for group in groups if not {id(p) for p in group["params"]} & prototypes]
    assert set(others) == {0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_prototypes", "21"], r"^--num_prototypes 21 are more than the 20 training images; lower it$"),
        (["--queue_start_epoch", "3"], r"^--queue_start_epoch has no effect without --queue_size"),
        (["--queue_size", "8", "--epochs", "15"], r"--queue_start_epoch 15: the queue of 8 .* after 15.4 of 15 epochs"),
        (
            ["--queue_size", "8", "--queue_start_epoch", "1", "--steps", "7"],
            r" after 1.4 of 1.4 epochs, and never used",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        build(*words, images=20)


def test_queue_that_is_used_in_the_last_step_is_accepted():
    assert len(build("--queue_size", "8", "--queue_start_epoch", "1", "--steps", "8", images=20).queue) == 2
