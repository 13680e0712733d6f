"""DeepCluster v2 against its formula, written as loops; what is clustered, when, and from which images."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from methods.deepclusterv2 import deepclusterv2_loss
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch
from utils.batch import Batch
from utils.errors import UserError
from utils.kmeans import assign, kmeans, spherical_lloyd
from utils.sync_batchnorm import synchronize_batch_norm


def unit(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.double, generator=generator), dim=1)


def naive_loss(z, centroids, assignments, t):
    """Mean over clusterings, views and images of the cross-entropy, a term at a time."""
    terms = []
    for c, ids in zip(centroids, assignments, strict=True):
        for view in z:
            for x, a in zip(view, ids, strict=True):
                normalizer = sum(math.exp(float(x @ other) / t) for other in c)
                terms.append(-math.log(math.exp(float(x @ c[a]) / t) / normalizer))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize("sizes", [[4], [3, 5, 3]])
@pytest.mark.parametrize("t", [0.1, 0.5])
def test_deepclusterv2_loss_agrees_with_the_formula(views, sizes, t):
    z, centroids = [unit(4, 6, i) for i in range(views)], [unit(k, 6, 10 + i) for i, k in enumerate(sizes)]
    ids = torch.stack([torch.arange(4) % k for k in sizes])
    loss = deepclusterv2_loss(z, centroids, ids, t)["loss"]
    assert loss.item() == pytest.approx(naive_loss(z, centroids, ids, t), abs=1e-12)


def test_deepclusterv2_loss_of_known_embeddings():
    """Images on their centroids, which are orthogonal: log(1 + (K - 1) exp(-1 / T)). Equal centroids: log K."""
    eye = torch.eye(5, dtype=torch.double)
    out = deepclusterv2_loss([eye, eye], [eye], torch.arange(5)[None], 0.5)
    assert out["loss"].item() == pytest.approx(math.log(1 + 4 * math.exp(-2)))
    assert out["cluster_acc"] == 100
    assert deepclusterv2_loss([eye, eye], [eye], torch.tensor([[0, 1, 2, 4, 3]]), 0.5)[
        "cluster_acc"
    ].item() == pytest.approx(60)
    equal = deepclusterv2_loss([eye, eye], [eye[:1].repeat(7, 1)], torch.arange(5)[None], 0.1)
    assert equal["loss"].item() == pytest.approx(math.log(7))


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), k=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_deepclusterv2_loss_ignores_the_order_of_images_views_and_clusters_and_rotations(seed, n, k):
    generator = torch.Generator().manual_seed(seed)
    z, centroids = [unit(n, 4, seed + i) for i in range(3)], [unit(k, 4, seed + 9)]
    ids = torch.randint(k, (1, n), generator=generator)
    loss = deepclusterv2_loss(z, centroids, ids, 0.1)["loss"]
    order, names = torch.randperm(n, generator=generator), torch.randperm(k, generator=generator)
    assert_close(deepclusterv2_loss([x[order] for x in z[::-1]], centroids, ids[:, order], 0.1)["loss"], loss)
    assert_close(deepclusterv2_loss(z, [centroids[0][names]], names.argsort()[ids], 0.1)["loss"], loss)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double, generator=generator)).Q
    assert_close(deepclusterv2_loss([x @ turn for x in z], [centroids[0] @ turn], ids, 0.1)["loss"], loss)


def test_deepclusterv2_loss_gradient_agrees_with_finite_differences():
    z, centroids = [unit(3, 4, i).requires_grad_() for i in range(3)], [unit(5, 4, 7), unit(4, 4, 8)]
    ids = torch.tensor([[0, 4, 2], [3, 1, 1]])
    assert torch.autograd.gradcheck(lambda *x: deepclusterv2_loss(list(x), centroids, ids, 0.5)["loss"], z)


IMAGES = 22


def image(index, view):
    """(n, 3, 2, 2) views that are a function of the position of the image and of the number of the view."""
    return torch.stack(
        [torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(2 * int(i) + view)).double() for i in index]
    )


class Images:
    """A data module with the images that `rows` name, in batches of one process; it remembers the rows."""

    def __init__(self, batch_size):
        self.batch_size, self.rows = batch_size, []

    def augmented_loader(self, rows, device):
        self.rows += rows
        for first in range(0, len(rows), self.batch_size):
            index = torch.tensor(rows[first : first + self.batch_size])
            yield Batch(index, [image(index, view) for view in range(2)], index % 3)


def build(*words, batch_size=4):
    torch.manual_seed(0)
    words = ["--batch_size", str(batch_size), "--num_centroids", "5", "4", "6", *words]
    method = build_method("deepclusterv2", Flat(12), 6, *words, images=IMAGES).double()
    method.trainer = SimpleNamespace(
        datamodule=Images(batch_size), precision_plugin=SimpleNamespace(forward_context=contextlib.nullcontext)
    )
    return method


def test_before_the_first_epoch_every_image_is_embedded_in_whole_batches_without_training():
    method = build()
    weights = {name: p.clone() for name, p in method.named_parameters()}
    method.on_train_epoch_start()
    rows = method.trainer.datamodule.rows
    assert len(rows) == 24
    assert sorted(set(rows)) == list(range(IMAGES)), "the last batch is filled up with the first images"
    assert rows[:IMAGES] != sorted(rows[:IMAGES]), "batch norm needs random batches, not a class at a time"
    assert all(torch.equal(p, weights[name]) for name, p in method.named_parameters())
    assert all(p.grad is None for p in method.parameters())
    index = torch.tensor(rows[4:8])
    for view in range(2):  # another batch would have other statistics
        expected = F.normalize(method.projector(method(image(index, view))), dim=1)
        assert_close(method.bank.rows[view, index], expected)


def test_clusterings_take_the_large_views_in_turn():
    method = build("--kmeans_iterations", "3")
    method.on_train_epoch_start()
    sizes = [5, 4, 6]
    for i, (k, centroids) in enumerate(zip(sizes, method.centroids.split(sizes), strict=True)):
        rows = method.bank.rows[i % 2]
        assert_close(centroids.norm(dim=1), torch.ones(k, dtype=torch.double), atol=1e-6, rtol=0)
        assert torch.equal(method.assignments[i], (rows.float() @ centroids.float().T).argmax(dim=1))
        found = kmeans(rows, k, 3, i, start="subset", iterate=spherical_lloyd).centroids
        assert torch.equal(centroids.float(), found)
        assert torch.equal(method.assignments[i], assign(rows, found)[0])


def test_an_epoch_trains_on_the_clusters_of_the_epoch_before():
    method = build()
    method.on_train_epoch_start()
    first = method.assignments.clone(), method.centroids.clone()
    for step in range(5):
        index = torch.arange(4 * step, 4 * step + 4)
        batch = Batch(index, [image(index, view) + 1 for view in range(2)], index % 3)
        out = method.compute_losses(batch)
        z = [F.normalize(method.projector(method(v)), dim=1).detach() for v in batch.views]
        expected = naive_loss(z, first[1].split([5, 4, 6]), first[0][:, index], 0.1)
        assert out["loss"].item() == pytest.approx(expected, abs=1e-10)
        method.after_optimizer_step()
        assert_close(method.bank.rows[:, index], torch.stack(z))
    assert torch.equal(method.assignments, first[0])
    assert torch.equal(method.centroids, first[1])
    loaded = len(method.trainer.datamodule.rows)
    method.on_train_epoch_start()
    assert len(method.trainer.datamodule.rows) == loaded, "the bank was filled by the epoch"
    assert not torch.equal(method.centroids, first[1])
    assert int(method.clusterings) == 2


def test_a_resumed_run_clusters_as_one_that_was_not_interrupted():
    """All that the next epoch depends on is in the state dict, and the start of k-means differs from epoch to epoch."""
    method, resumed = build(), build()
    method.on_train_epoch_start()
    resumed.load_state_dict(method.state_dict())
    rows = method.bank.rows.clone()
    for each in (method, resumed):
        each.on_train_epoch_start()
    assert not resumed.trainer.datamodule.rows
    for name, value in method.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert torch.equal(method.bank.rows, rows)


def two_epochs_on_a_rank(rank, world):
    """Rows that the first pass took on this rank, and the state after an epoch of one batch and another clustering."""
    method = build(batch_size=12 // world)
    synchronize_batch_norm(method, on_cuda=False)
    method.on_train_epoch_start()
    index = torch.arange(12).view(world, -1)[rank]
    method.compute_losses(Batch(index, [image(index, view) + 1 for view in range(2)], index % 3))
    method.after_optimizer_step()
    method.on_train_epoch_start()
    return method.trainer.datamodule.rows, method.state_dict()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_embed_their_share_and_cluster_as_one_process(ranks, world):
    rows, state = two_epochs_on_a_rank(0, 1)
    several = ranks(world).run(two_epochs_on_a_rank)
    shares = torch.stack([torch.tensor(own).view(2, -1) for own, _ in several], dim=1)  # (batches, ranks, images)
    assert shares.flatten().tolist() == rows, "together a batch is that of one process"
    for _, found in several:
        assert torch.equal(found["assignments"], state["assignments"])
        for name in ("bank.rows", "centroids", "clusterings"):
            assert_close(found[name], state[name], rtol=0, atol=1e-9)


def test_small_views_are_trained_and_not_clustered():
    method = build("--small_views", "2")
    method.on_train_epoch_start()
    batch = random_batch(4, 4, dtype=torch.double)
    method.compute_losses(batch)
    method.after_optimizer_step()
    z = [F.normalize(method.projector(method(v)), dim=1).detach() for v in batch.views]
    assert_close(method.bank.rows[:, :4], torch.stack(z[:2]))
    assert "centroids" not in dict(method.named_parameters()), "centroids are not trained"


def test_more_clusters_than_images_are_refused():
    with pytest.raises(UserError, match=r"^--num_centroids 23 are more than the 22 training images; lower it$"):
        build("--num_centroids", "4", "23")
