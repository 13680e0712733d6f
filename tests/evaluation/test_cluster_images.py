"""Step 1 of ClusterFit: features once, whatever the processes and interruptions; axes, samples, advice, refusals."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from evaluation import feature_files
from evaluation.cluster_images import Points, Space, _sample, _tell, check_clusters, cluster
from evaluation.kmeans import KMeans
from evaluation.target import EvaluationTarget
from tests.evaluation.test_evaluation import CPU, Position, digits
from utils.cluster_file import read_clusters
from utils.errors import UserError


def arguments(folder, **more):
    usual = {"clusters": str(folder / "c.npz"), "num_clusters": 12, "cluster_iterations": 20, "cluster_seed": 0,
             "cluster_backend": "torch", "cluster_sample": None, "pca": None, "layer": None, "features_dir": None,
             "home": str(folder / "run"), "source": "w.pth", "dataset": "digits", "backbone": "b",
             "seed": 0}  # fmt: skip
    return Namespace(**usual | more)


class Pixels(Position):
    """Every fourth pixel of the middle column."""

    def forward(self, x):
        return x[:, 0, ::4, 16]


def run(folder, network=None, **more):
    args = arguments(folder, **more)
    folder.mkdir(exist_ok=True)
    return cluster(EvaluationTarget("net", network or Pixels(), digits(), None, CPU, args, folder))


def on_ranks(rank, world, folder):
    folder.mkdir(exist_ok=True)
    run(folder)


@pytest.mark.parametrize("world", [1, 2])
def test_ids_do_not_depend_on_processes(tmp_path, ranks, world):
    numbers = run(tmp_path / "here")
    ranks(world).run(on_ranks, tmp_path / "there")
    here, there = (read_clusters(tmp_path / place / "c.npz") for place in ("here", "there"))
    np.testing.assert_array_equal(here.ids, there.ids)
    np.testing.assert_array_equal(here.val_ids, there.val_ids)
    np.testing.assert_array_equal(here.centroids, there.centroids)
    assert (len(here.ids), len(here.val_ids), here.centroids.shape) == (1438, 359, (12, 8))
    assert set(here.ids) == set(range(12))
    assert 0.2 < numbers["NMI"] < 0.8
    assert 30 < numbers["purity"] < 90
    assert (tmp_path / "here" / "net_clusters.png").stat().st_size > 10_000


def test_every_image_is_put_to_the_nearest_centroid(tmp_path):
    run(tmp_path / "a")
    found = read_clusters(tmp_path / "a" / "c.npz")
    module = digits()
    for split, ids in (("train", found.ids), ("val", found.val_ids)):
        x = torch.cat([Pixels()(b.views[0]) for b in module.eval_dataloader(split, CPU)]).double()
        x = x / x.norm(dim=1, keepdim=True)
        distance = torch.cdist(x, torch.from_numpy(found.centroids).double())
        taken = distance[torch.arange(len(x)), torch.from_numpy(ids)]
        assert (taken - distance.min(dim=1).values).max() < 1e-6
    assert found.about["fingerprint"] == module.data.train.fingerprint()
    assert found.about["images"] == 1438
    assert found.about["num_clusters"] == 12
    assert found.about["weights"] == "w.pth"


class Dies(Pixels):
    """Sees five batches and no more."""

    seen = 0

    def forward(self, x):
        Dies.seen += len(x) > 1
        if Dies.seen > 5:
            raise RuntimeError("power cut")
        return super().forward(x)


class Counts(Pixels):
    images = 0

    def forward(self, x):
        Counts.images += len(x)
        return super().forward(x)


def test_an_interrupted_extraction_gives_the_same_ids_and_another_k_no_extraction(tmp_path):
    run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", Dies())
    run(tmp_path / "cut", Counts())
    assert Counts.images == 1438 - 500 + 359 + 1, "what was missing, and one image of the second split for its width"
    whole, cut = (read_clusters(tmp_path / name / "c.npz") for name in ("whole", "cut"))
    np.testing.assert_array_equal(whole.ids, cut.ids)
    np.testing.assert_array_equal(whole.val_ids, cut.val_ids)
    before = Counts.images
    run(tmp_path / "cut", Counts(), num_clusters=5, clusters=str(tmp_path / "cut" / "five.npz"))
    assert Counts.images == before
    assert len(read_clusters(tmp_path / "cut" / "five.npz").centroids) == 5


def test_a_damaged_store_is_no_other_networks_and_says_so(tmp_path):
    run(tmp_path / "a")
    for path in (tmp_path / "a" / "run" / "features").glob("train-*/made_of.json"):
        path.write_text("{}")
    with pytest.raises(UserError, match="holds features of another weights"):
        run(tmp_path / "a", clusters=str(tmp_path / "b.npz"))


class Constant(Position):
    def forward(self, x):
        return torch.ones(len(x), 3)


class Broken(Position):
    def forward(self, x):
        return torch.full((len(x), 3), torch.nan)


def test_features_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="1438 rows of features .* did training collapse"):
        run(tmp_path / "a", Constant())
    with pytest.raises(UserError, match="1438 of 1438 rows of features are not finite"):
        run(tmp_path / "b", Broken())
    with pytest.raises(UserError, match="--pca 9 of features with 8 coordinates and 1438 rows; at most 8"):
        run(tmp_path / "c", pca=9)
    assert not list(tmp_path.glob("*/c.npz"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_clusters": 1}, "--num_clusters 1: from 2 to 50"),
        ({"num_clusters": 51}, "--num_clusters 51: from 2 to 50"),
        ({"clusters": "ids.txt"}, "--clusters ids.txt must end in .npz"),
        ({"cluster_sample": 11}, "--cluster_sample 11: k-means of 12 clusters needs as many rows"),
        ({"cluster_sample": 15, "pca": 16}, "--pca 16 needs as many rows as axes; raise --cluster_sample 15"),
    ],
)
def test_what_cannot_be_is_refused_before_features_are_taken(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        check_clusters(arguments(tmp_path, **more), 50)


def test_a_file_is_not_overwritten(tmp_path):
    check_clusters(arguments(tmp_path), 50)
    (tmp_path / "c.npz").write_text("precious")
    with pytest.raises(UserError, match=r"c.npz exists and is not overwritten; name another file"):
        check_clusters(arguments(tmp_path), 50)


def test_axes_are_those_of_the_largest_variance():
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("f4") * [5, 1, 3, 0.1, 0.2, 2]
    x = x.astype("f4")
    space = Space.of(x, np.arange(40), 3)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f8")
    u, s, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(abs(Points(x, space)[:]), abs(u * s)[:, :3], atol=1e-5)
    np.testing.assert_allclose(Points(x, space)[[3, 7]], Points(x, space)[:][[3, 7]], atol=1e-6)
    np.testing.assert_allclose(Points(x, Space.of(x, np.arange(40), None))[:], unit, atol=1e-6)


def test_a_sample_is_drawn_sorted_and_as_large_as_asked_or_as_memory_allows(tmp_path, monkeypatch):
    x = np.zeros((100, 8), np.float32)
    assert _sample(x, arguments(tmp_path)).tolist() == list(range(100))
    some = _sample(x, arguments(tmp_path, cluster_sample=30))
    assert len(set(some)) == 30
    assert (np.diff(some) > 0).all()
    assert not np.array_equal(some, _sample(x, arguments(tmp_path, cluster_sample=30, cluster_seed=1)))
    monkeypatch.setattr("evaluation.cluster_images.host_memory", lambda: 100 * 8 * 4)
    assert len(_sample(x, arguments(tmp_path))) == 40
    with pytest.raises(UserError, match="40 rows of features fit into memory, --num_clusters 41 needs as many"):
        _sample(x, arguments(tmp_path, num_clusters=41))


def test_clusters_of_a_sample_on_few_axes(tmp_path, capsys):
    run(tmp_path / "a", cluster_sample=300, pca=3)
    found = read_clusters(tmp_path / "a" / "c.npz")
    assert found.centroids.shape == (12, 3)
    assert (found.pca_mean.shape, found.pca_axes.shape) == ((8,), (8, 3))
    assert len(found.ids) == 1438
    assert "a sample of 300 of 1,438 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("k", "advice"),
    [(12, None), (2, "13 to 250 are usual"), (251, "few images in each, much of them noise"), (250, None), (13, None)],
)
def test_advice_on_the_number_of_clusters(tmp_path, capsys, k, advice):
    numbers = {"smallest": 1, "median": 2.5, "largest": 9, "empty": 0}
    images = 5000 if k != 12 else 4800
    _tell(arguments(tmp_path, num_clusters=k), images, images, KMeans(torch.zeros(k, 2), [0.5, 0.25], 3), numbers)
    said = capsys.readouterr().out
    assert "1 iterations on all" in said
    assert "0.5 -> 0.25, 3 empty clusters put elsewhere" in said
    assert "1 in the smallest of" in said
    assert "NMI" not in said
    assert ("\n  advice" in said) == (advice is not None)
    assert (advice or "") in said


def test_the_store_is_read_only(tmp_path):
    run(tmp_path / "a")
    subject = EvaluationTarget("net", Pixels(), digits(), None, CPU, arguments(tmp_path / "a"), tmp_path / "a")
    with pytest.raises(ValueError, match="read-only"):
        feature_files.stored(subject, "train")[0] = 0
