"""ClusterFit against its formula, and its use of the cluster file."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from methods.clusterfit import cluster_loss
from tests.helpers.commands import build_method, small
from tests.helpers.networks import Flat
from utils.batch import Batch
from utils.errors import UserError


def naive_cluster_loss(views, ids):
    total = 0.0
    for logits in views:
        for row, one in zip(logits, ids, strict=True):
            total -= math.log(math.exp(row[one]) / sum(math.exp(x) for x in row))
    return torch.tensor(total / (len(ids) * len(views)), dtype=torch.double)


def draw(n, k=5, views=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, k, dtype=torch.double, generator=g) for _ in range(views)], torch.randint(
        k, (n,), generator=g
    )


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("n", [1, 6])
def test_cluster_loss_agrees_with_the_formula(n, views):
    logits, ids = draw(n, views=views)
    assert_close(cluster_loss(logits, ids)["loss"], naive_cluster_loss(logits, ids), rtol=0, atol=1e-12)


def test_cluster_loss_of_a_uniform_and_of_a_perfect_prediction():
    ids = torch.arange(8)
    assert cluster_loss([torch.zeros(8, 8)], ids)["loss"].item() == pytest.approx(math.log(8))
    known = cluster_loss([100 * torch.eye(8)], ids)
    assert known["loss"] < 1e-6
    assert known["cluster_acc"] == 100


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_cluster_loss_ignores_names_of_clusters_order_of_images_and_level_of_logits(seed, n):
    (logits,), ids = draw(n, seed=seed)
    loss = cluster_loss([logits], ids)["loss"]
    g = torch.Generator().manual_seed(seed)
    rename, order = torch.randperm(5, generator=g), torch.randperm(n, generator=g)
    assert_close(cluster_loss([logits[:, rename]], rename.argsort()[ids])["loss"], loss)
    assert_close(cluster_loss([logits[order]], ids[order])["loss"], loss)
    assert_close(cluster_loss([logits + 3], ids)["loss"], loss)


def test_cluster_loss_gradient_agrees_with_finite_differences():
    (logits,), ids = draw(4)
    assert torch.autograd.gradcheck(lambda x: cluster_loss([x], ids)["loss"], [logits.requires_grad_()])


def method(*words, seed=0):
    return build_method("clusterfit", Flat(12), 6, "--batch_size", "8", "--seed", str(seed), *words)


def test_training_loss_takes_the_cluster_of_the_image_index(monkeypatch):
    one, requested = method(), []
    monkeypatch.setattr(
        "methods.clusterfit.cluster_loss", lambda logits, ids: requested.append(ids) or {"loss": logits[0].sum()}
    )
    index = torch.tensor([5, 0, 1437, 2])
    one.compute_losses(Batch(index, [torch.randn(4, 3, 2, 2)], torch.zeros(4, dtype=torch.long)))
    assert requested[0].tolist() == [i % 4 for i in index.tolist()], "the file puts image i into cluster i % 4"
    assert one.head.out_features == 4


def test_shuffle_clusters_keeps_cluster_sizes_and_depends_on_the_seed():
    plain, shuffled, again, other = method(), *(method("--shuffle_clusters", seed=s) for s in (0, 0, 1))
    assert torch.bincount(shuffled.ids).tolist() == torch.bincount(plain.ids).tolist()
    assert (shuffled.ids == plain.ids).float().mean() < 0.35, "one in four stays by chance"
    assert torch.equal(shuffled.ids, again.ids)
    assert not torch.equal(shuffled.ids, other.ids)


def test_cluster_ids_are_in_the_state_dict():
    one = method("--shuffle_clusters", seed=1)
    other = method()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.ids, one.ids)


def test_cluster_file_that_is_missing_or_of_other_images_is_an_error():
    with pytest.raises(UserError, match=r"1,438.*99"):
        build_method("clusterfit", Flat(12), 6, "--batch_size", "8", images=99)
    with pytest.raises(UserError, match="--cluster_file"):
        parse_pretraining(["digits", "resnet18", "--method", "clusterfit"], METHODS, DATASETS)
    wrong = small("clusterfit")
    wrong[wrong.index("--cluster_file") + 1] = "gone.npz"
    with pytest.raises(UserError, match="gone.npz does not exist"):
        build_method("clusterfit", Flat(12), 6, "--batch_size", "8", *wrong)
