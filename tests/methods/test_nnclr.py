"""NNCLR against its formula, written as loops, and the promises about its queue."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from methods.base import ViewFeatures
from methods.nnclr import NNCLR, nnclr_loss
from tests.helpers.commands import plan_of
from tests.helpers.networks import Flat
from utils.batch import Batch
from utils.errors import UserError


def unit(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.double, generator=generator), dim=1)


def naive_nnclr(nn, p, t):
    """Eq. 3 and its transpose, a term at a time; negatives are the other rows of the same matrix."""
    n, total = len(p), 0.0
    for i in range(n):
        positive = math.exp(nn[i] @ p[i] / t)
        total -= math.log(positive / sum(math.exp(nn[i] @ p[k] / t) for k in range(n)))
        total -= math.log(positive / sum(math.exp(nn[k] @ p[i] / t) for k in range(n)))
    return torch.tensor(total / (2 * n), dtype=torch.double)


@pytest.mark.parametrize("n", [2, 5, 9])
@pytest.mark.parametrize("views", [2, 3, 8])
@pytest.mark.parametrize("t", [0.1, 0.5])
def test_agrees_with_the_formula(n, views, t):
    """Two views are the paper's; with more, each is compared with the neighbours of the large ones but its own."""
    nn, p = [unit(n, 6, i) for i in range(2)], [unit(n, 6, 10 + i) for i in range(views)]
    pairs = [naive_nnclr(nn[j], p[i], t) for j in range(2) for i in range(views) if i != j]
    assert_close(nnclr_loss(nn, p, t), torch.stack(pairs).mean(), rtol=0, atol=1e-10)


def test_identical_vectors_give_log_of_the_batch():
    one = [F.normalize(torch.ones(6, 4, dtype=torch.double), dim=1)] * 2
    assert_close(nnclr_loss(one, one, 0.1), torch.tensor(6.0, dtype=torch.double).log())


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), t=st.floats(0.05, 2.0))
@settings(max_examples=30, deadline=None)
def test_symmetric_and_independent_of_the_order_with_a_lower_bound(seed, n, t):
    nn, p = [unit(n, 5, seed), unit(n, 5, seed + 1)], [unit(n, 5, seed + 2), unit(n, 5, seed + 3)]
    loss = nnclr_loss(nn, p, t)
    turn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(nnclr_loss([x[turn] for x in nn], [x[turn] for x in p], t), loss)
    assert_close(nnclr_loss(p, nn, t), loss)
    assert_close(nnclr_loss(nn[::-1], p[::-1], t), loss)
    assert loss >= math.log(1 + (n - 1) * math.exp(-2 / t)) - 1e-9, "nothing is better than all others opposite"


def test_gradient_agrees_with_finite_differences():
    p = [unit(3, 4, i).requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(lambda *x: nnclr_loss([unit(3, 4, 7), unit(3, 4, 8)], list(x), 0.5), p)


def build(*words):
    torch.manual_seed(0)
    return NNCLR(plan_of("nnclr", "--batch_size", "4", *words), Flat(12), 6).double()


def batch(n=4, seed=0, views=2):
    g = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, 2, 2, dtype=torch.double, generator=g) for _ in range(views)]
    return Batch(torch.arange(n), views, torch.arange(n) % 10)


def loss_of(method, b):
    feats = [method(v) for v in b.views]
    return method.training_loss(ViewFeatures(feats[:2], feats[2:]), b)


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("words", [[], ["--no_predictor"]])
def test_objective_is_the_mean_over_pairs_of_views_and_both_directions(words, views):
    method, b = build(*words), batch(views=views)
    rows = method.queue.rows.clone()
    out = loss_of(method, b)
    z = [F.normalize(x, dim=1) for x in (method.projector(method(v)) for v in b.views)]
    p = [F.normalize(method.predictor(method.projector(method(v))), dim=1).detach() for v in b.views]
    nearest = [rows[(x @ rows.T).argmax(dim=1)] for x in z[:2]]
    pairs = [naive_nnclr(nearest[j], p[i], 0.1) for j in range(2) for i in range(views) if i != j]
    assert len(pairs) == 2 * (views - 1)
    assert_close(out["loss"].detach(), sum(pairs) / len(pairs), rtol=0, atol=1e-10)


def test_a_batch_never_finds_itself():
    method, b = build(), batch()
    for _ in range(3):  # the same batch again and again: its embeddings are in the queue only from the step before
        z1 = F.normalize(method.projector(method(b.views[0])), dim=1).detach()
        out = loss_of(method, b)
        inside = (method.queue.rows[:, None] - z1).norm(dim=2).min(dim=0).values
        assert (inside > 1e-6).all() or out["nn_similarity"] > 1 - 1e-9
        assert (method.queue.age == 0).sum() in (0, 4)
        before = method.queue.rows.clone()
        assert torch.equal(method.queue.rows, before), "the loss must not move the queue"
        method.queue.flush()
        assert_close(method.queue.rows[(method.queue.pointer - 4) % 40 : method.queue.pointer or 40], z1)
        with torch.no_grad():
            for q in method.projector.parameters():
                q.add_(0.1 * torch.randn_like(q))


def test_first_look_up_finds_only_random_rows():
    out = loss_of(build(), batch())
    assert out["queue_fill"] == 0
    assert out["nn_label_acc"] == 0
    assert out["nn_similarity"] < 0.99


def test_health_numbers():
    method, b = build(), batch()
    for expected_fill, expected_age in ((0.0, 0.0), (0.1, 0.0), (0.2, 0.5)):
        out = loss_of(method, b)
        assert out["queue_fill"].item() == pytest.approx(expected_fill)
        assert out["queue_age"].item() == pytest.approx(expected_age)
        assert 0.25 <= out["nn_distinct"] <= 1
        method.queue.flush()
    assert out["nn_label_acc"] == 100, "the same images again: each finds its own last embedding"


def test_without_labels_the_label_number_stays_quiet():
    method = NNCLR(plan_of("nnclr", "--batch_size", "4", classes=0), Flat(12), 6).double()
    assert "nn_label_acc" not in loss_of(method, batch()._replace(labels=torch.full((4,), -1)))


def test_a_queue_smaller_than_the_global_batch_is_refused():
    with pytest.raises(UserError, match="--queue_size 40 is smaller than the global batch of 64"):
        NNCLR(plan_of("nnclr", "--batch_size", "32", "--accumulate", "2"), Flat(12), 6)


def test_defaults_are_the_papers():
    from cli.pretrain import parse_pretraining
    from data.datasets import DATASETS
    from methods import METHODS

    args = parse_pretraining(["imagenet", "resnet50", "--method", "nnclr"], METHODS, DATASETS)
    wanted = {"hidden_mlp": 2048, "proj_layers": 3, "proj_dim": 256, "pred_hidden_mlp": 4096, "pred_layers": 2,
              "queue_size": 98304, "temperature": 0.1,
              "optimizer": "lars", "lr": 0.3, "weight_decay": 1e-6}  # fmt: skip
    assert {k: getattr(args, k) for k in wanted} == wanted
