"""ClusterFit against its formula, and what it does with the ids that it is given."""

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
from tests.helpers.commands import plan_of, small
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
def test_agrees_with_the_formula(n, views):
    logits, ids = draw(n, views=views)
    assert_close(cluster_loss(logits, ids)["loss"], naive_cluster_loss(logits, ids), rtol=0, atol=1e-12)


def test_knowing_nothing_costs_the_logarithm_of_the_clusters_and_knowing_all_costs_nothing():
    ids = torch.arange(8)
    assert cluster_loss([torch.zeros(8, 8)], ids)["loss"].item() == pytest.approx(math.log(8))
    known = cluster_loss([100 * torch.eye(8)], ids)
    assert known["loss"] < 1e-6
    assert known["cluster_acc"] == 100


@given(seed=st.integers(0, 2**31), n=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_names_of_clusters_order_of_images_and_level_of_logits_do_not_matter(seed, n):
    (logits,), ids = draw(n, seed=seed)
    loss = cluster_loss([logits], ids)["loss"]
    g = torch.Generator().manual_seed(seed)
    rename, turn = torch.randperm(5, generator=g), torch.randperm(n, generator=g)
    assert_close(cluster_loss([logits[:, rename]], rename.argsort()[ids])["loss"], loss)
    assert_close(cluster_loss([logits[turn]], ids[turn])["loss"], loss)
    assert_close(cluster_loss([logits + 3], ids)["loss"], loss)


def test_gradient_agrees_with_finite_differences():
    (logits,), ids = draw(4)
    assert torch.autograd.gradcheck(lambda x: cluster_loss([x], ids)["loss"], [logits.requires_grad_()])


def method(*words, seed=0):
    return METHODS["clusterfit"](plan_of("clusterfit", "--batch_size", "8", "--seed", str(seed), *words), Flat(12), 6)


def test_an_image_is_asked_for_the_cluster_of_its_index(monkeypatch):
    one, asked = method(), []
    monkeypatch.setattr(
        "methods.clusterfit.cluster_loss", lambda logits, ids: asked.append(ids) or {"loss": logits[0].sum()}
    )
    index = torch.tensor([5, 0, 1437, 2])
    one.compute_losses(Batch(index, [torch.randn(4, 3, 2, 2)], torch.zeros(4, dtype=torch.long)))
    assert asked[0].tolist() == [i % 4 for i in index.tolist()], "the file puts image i into cluster i % 4"
    assert one.head.out_features == 4


def test_shuffled_ids_keep_their_number_and_belong_to_a_seed():
    plain, shuffled, again, other = method(), *(method("--shuffle_clusters", seed=s) for s in (0, 0, 1))
    assert torch.bincount(shuffled.ids).tolist() == torch.bincount(plain.ids).tolist()
    assert (shuffled.ids == plain.ids).float().mean() < 0.35, "one in four stays by chance"
    assert torch.equal(shuffled.ids, again.ids)
    assert not torch.equal(shuffled.ids, other.ids)


def test_ids_travel_in_the_checkpoint():
    one = method("--shuffle_clusters", seed=1)
    other = method()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.ids, one.ids)


def test_the_papers_recipe_is_the_default():
    args = parse_pretraining(
        ["imagenet", "resnet50", "--method", "clusterfit", "--clusters", "x.npz"], METHODS, DATASETS
    )
    assert (args.epochs, args.optimizer, args.lr, args.weight_decay) == (105, "sgd", 0.1, 1e-4)
    assert (args.scheduler, args.lr_decay_steps, args.lr_decay_factor) == ("step", [30, 60, 90, 100], 0.1)
    assert (args.jitter, args.gray, args.blur, args.solarize) == (0.8, 0.0, [0.0], [0.0])


def test_other_images_are_refused():
    with pytest.raises(UserError, match="has the clusters of 1,438 images, digits has 99 here; make a clusters file"):
        METHODS["clusterfit"](plan_of("clusterfit", "--batch_size", "8", images=99), Flat(12), 6)
    with pytest.raises(UserError, match="--clusters"):
        parse_pretraining(["digits", "resnet18", "--method", "clusterfit"], METHODS, DATASETS)
    wrong = small("clusterfit")
    wrong[wrong.index("--clusters") + 1] = "gone.npz"
    with pytest.raises(UserError, match="gone.npz does not exist; make it by main_linear.py ... --evaluation cluster"):
        METHODS["clusterfit"](plan_of("clusterfit", "--batch_size", "8", *wrong), Flat(12), 6)
