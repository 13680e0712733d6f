"""NNCLR against its formula, written as loops, and the order of look-ups and pushes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from methods import nnclr
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch
from utils.errors import UserError
from utils.view_features import ViewFeatures


def unit(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.double, generator=generator), dim=1)


def nnclr_loss(neighbours, p, t):
    """The loss for neighbours that are given as vectors, one (n, D) tensor per large view."""
    index = torch.arange(len(neighbours) * len(p[0])).split(len(p[0]))
    return nnclr.nnclr_loss(torch.cat(neighbours), list(index), p, t)


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
def test_nnclr_loss_agrees_with_the_formula(n, views, t):
    """Two views are the paper's; with more, each view is compared with the neighbours of the other, large views."""
    nn, p = [unit(n, 6, i) for i in range(2)], [unit(n, 6, 10 + i) for i in range(views)]
    pairs = [naive_nnclr(nn[j], p[i], t) for j in range(2) for i in range(views) if i != j]
    assert_close(nnclr_loss(nn, p, t), torch.stack(pairs).mean(), rtol=0, atol=1e-10)


def test_nnclr_loss_of_identical_vectors_is_the_log_of_the_batch():
    one = [F.normalize(torch.ones(6, 4, dtype=torch.double), dim=1)] * 2
    assert_close(nnclr_loss(one, one, 0.1), torch.tensor(6.0, dtype=torch.double).log())


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), t=st.floats(0.05, 2.0))
@settings(max_examples=30, deadline=None)
def test_nnclr_loss_is_symmetric_ignores_order_and_has_a_lower_bound(seed, n, t):
    nn, p = [unit(n, 5, seed), unit(n, 5, seed + 1)], [unit(n, 5, seed + 2), unit(n, 5, seed + 3)]
    loss = nnclr_loss(nn, p, t)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(nnclr_loss([x[order] for x in nn], [x[order] for x in p], t), loss)
    assert_close(nnclr_loss(p, nn, t), loss)
    assert_close(nnclr_loss(nn[::-1], p[::-1], t), loss)
    assert loss >= math.log(1 + (n - 1) * math.exp(-2 / t)) - 1e-9, "nothing is better than all others opposite"


def test_nnclr_loss_gradient_agrees_with_finite_differences():
    p = [unit(3, 4, i).requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(lambda *x: nnclr_loss([unit(3, 4, 7), unit(3, 4, 8)], list(x), 0.5), p)


def build(*words, classes=10):
    torch.manual_seed(0)
    return build_method("nnclr", Flat(12), 6, "--batch_size", "4", *words, classes=classes).double()


def batch(views=2):
    return random_batch(4, views, dtype=torch.double)


def loss_of(method, b):
    feats = [method(v) for v in b.views]
    return method.training_loss(ViewFeatures(feats[:2], feats[2:]), b)


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("words", [[], ["--no_predictor"]])
def test_training_loss_is_the_mean_over_pairs_of_views_and_both_directions(words, views):
    method, b = build(*words), batch(views=views)
    rows = method.queue.rows.clone()
    out = loss_of(method, b)
    z = [F.normalize(x, dim=1) for x in (method.projector(method(v)) for v in b.views)]
    p = [F.normalize(method.predictor(method.projector(method(v))), dim=1).detach() for v in b.views]
    nearest = [rows[(x @ rows.T).argmax(dim=1)] for x in z[:2]]
    pairs = [naive_nnclr(nearest[j], p[i], 0.1) for j in range(2) for i in range(views) if i != j]
    assert len(pairs) == 2 * (views - 1)
    assert_close(out["loss"].detach(), sum(pairs) / len(pairs), rtol=0, atol=1e-10)


def test_training_loss_never_finds_its_own_batch():
    method, b = build(), batch()
    for _ in range(3):  # the same batch again and again: its embeddings are in the queue only from the step before
        z1 = F.normalize(method.projector(method(b.views[0])), dim=1).detach()
        out = loss_of(method, b)
        inside = (method.queue.rows[:, None] - z1).norm(dim=2).min(dim=0).values
        assert (inside > 1e-6).all() or out["nn_similarity"] > 1 - 1e-9
        assert (method.queue.age == 0).sum() in (0, 4)
        before = method.queue.rows.clone()
        assert torch.equal(method.queue.rows, before), "the loss must not move the queue"
        method.queue.after_optimizer_step()
        assert_close(method.queue.rows[(method.queue.pointer - 4) % 40 : method.queue.pointer or 40], z1)
        with torch.no_grad():
            for q in method.projector.parameters():
                q.add_(0.1 * torch.randn_like(q))


def test_first_look_up_finds_random_rows_only():
    out = loss_of(build(), batch())
    assert out["queue_fill"] == 0
    assert out["nn_label_acc"] == 0
    assert out["nn_similarity"] < 0.99


def test_neighbour_metrics_over_three_steps():
    method, b = build(), batch()
    for expected_fill, expected_age in ((0.0, 0.0), (0.1, 0.0), (0.2, 0.5)):
        out = loss_of(method, b)
        assert out["queue_fill"].item() == pytest.approx(expected_fill)
        assert out["queue_age"].item() == pytest.approx(expected_age)
        assert 0.25 <= out["nn_distinct"] <= 1
        method.queue.after_optimizer_step()
    assert out["nn_label_acc"] == 100, "the same images again: each finds its own last embedding"


def test_neighbour_metrics_without_labels_have_no_label_accuracy():
    method = build(classes=0)
    assert "nn_label_acc" not in loss_of(method, batch()._replace(labels=torch.full((4,), -1)))


def test_queue_smaller_than_the_global_batch_is_an_error():
    with pytest.raises(UserError, match=r"--queue_size 40 .* 64"):
        build_method("nnclr", Flat(12), 6, "--batch_size", "32", "--accumulate", "2")


@pytest.mark.parametrize("views", [2, 4])
def test_top_k_is_the_mean_loss_over_the_nearest_neighbours(views):
    """Each of the neighbours is compared with those that are equally near to the other images."""
    method, b = build("--top_k", "3"), batch(views=views)
    rows = method.queue.rows.clone()
    out = loss_of(method, b)
    z = [F.normalize(method.projector(method(v)), dim=1) for v in b.views]
    p = [F.normalize(method.predictor(method.projector(method(v))), dim=1).detach() for v in b.views]
    order = [(x @ rows.T).argsort(dim=1, descending=True) for x in z[:2]]
    values = [
        naive_nnclr(rows[order[j][:, m]], p[i], 0.1)
        for m in range(3) for j in range(2) for i in range(views) if i != j
    ]  # fmt: skip
    assert_close(out["loss"].detach(), sum(values) / len(values), rtol=0, atol=1e-10)
    nearest = torch.stack([z[0][i] @ rows[order[0][i, 0]] for i in range(4)])
    assert_close(out["nn_similarity"], nearest.mean().detach(), rtol=0, atol=1e-12)


def test_nnclr_loss_of_one_neighbour_is_the_same_with_and_without_its_dimension():
    rows, p = unit(20, 5), [unit(4, 5, 1), unit(4, 5, 2)]
    index = [torch.tensor([3, 1, 4, 15]), torch.tensor([9, 2, 6, 5])]
    several = nnclr.nnclr_loss(rows, [i[:, None] for i in index], p, 0.2)
    assert torch.equal(several, nnclr.nnclr_loss(rows, index, p, 0.2))


@pytest.mark.parametrize("views", [1, 2])
def test_push_views_enter_the_queue_by_image_then_by_view(views):
    method, b = build("--push_views", str(views)), batch()
    rows = method.queue.rows.clone()
    loss_of(method, b)
    z = [F.normalize(method.projector(method(v)), dim=1).detach() for v in b.views]
    method.queue.after_optimizer_step()
    expected = [z[view][i] for i in range(4) for view in range(views)]
    assert_close(method.queue.rows[: 4 * views], torch.stack(expected))
    assert torch.equal(method.queue.rows[4 * views :], rows[4 * views :])
    assert method.queue.labels[: 4 * views].tolist() == [i for i in range(4) for _ in range(views)]


@pytest.mark.parametrize(("words", "message"), [
    (("--batch_size", "32", "--push_views", "2"), "--queue_size 40 is smaller than 64 embeddings"),
    (("--top_k", "41"), "--top_k 41 is more than --queue_size 40"),
])  # fmt: skip
def test_queue_too_small_for_its_settings_is_an_error(words, message):
    with pytest.raises(UserError, match=message):
        build_method("nnclr", Flat(12), 6, *words)


def test_same_class_neighbours_are_rows_of_the_class_of_the_image():
    method, b = build("--same_class_neighbours"), batch()
    method.queue.labels.copy_(torch.arange(40) % 4)  # the images of the batch have labels 0 to 3
    rows = method.queue.rows.clone()
    out = loss_of(method, b)
    z = [F.normalize(method.projector(method(v)), dim=1).detach() for v in b.views]
    p = [F.normalize(method.predictor(method.projector(method(v))), dim=1).detach() for v in b.views]
    nn = [torch.stack([max(rows[i::4], key=lambda row: float(row @ x[i])) for i in range(4)]) for x in z]
    expected = (naive_nnclr(nn[0], p[1], 0.1) + naive_nnclr(nn[1], p[0], 0.1)) / 2
    assert_close(out["loss"].detach(), expected, rtol=0, atol=1e-10)
    assert out["nn_label_acc"] == 100


def test_same_class_neighbours_without_labels_are_refused():
    with pytest.raises(UserError, match=r"--same_class_neighbours needs labels.*digits"):
        build_method("nnclr", Flat(12), 6, "--same_class_neighbours", classes=0)
