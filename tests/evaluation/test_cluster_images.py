"""Tests of clustering images: ids do not depend on processes or interruptions; samples, advice, refusals."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.cluster_images import (
    ClusterSettings,
    check_cluster_settings,
    cluster,
    cluster_settings,
    describe,
    sample_rows,
)
from evaluation.settings import TrainingLabels
from tests.helpers.evaluation import CPU, Pixels, Position, digits_module, target_of
from utils import shares
from utils.cluster_file import read_clusters
from utils.errors import UserError
from utils.kmeans import KMeans


def settings_of(folder, **more):
    """Settings of 12 clusters."""
    settings = ClusterSettings(k=12, output=folder / "c.npz", iterations=20, seed=0, backend="torch", sample=None,
                               pca=None, features_dir=None)  # fmt: skip
    return replace(settings, **more)


def run(folder, network=None, **more):
    """Cluster the digits; scores by name."""
    folder.mkdir(exist_ok=True)
    scores = cluster(target_of(network or Pixels(), folder), settings_of(folder, **more))
    return {score.name: score.value for score in scores}


def on_ranks(rank, world, folder, more):
    """Cluster the digits, with parts of which each rank has several."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "PART", 2000)
        return run(folder, **more)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_cluster_does_not_depend_on_the_number_of_processes(tmp_path, ranks, world):
    scores = on_ranks(0, 1, tmp_path / "here", {})
    assert ranks(world).run(on_ranks, tmp_path / "there", {}) == [scores] + [{}] * (world - 1)
    here, there = (read_clusters(tmp_path / place / "c.npz") for place in ("here", "there"))
    np.testing.assert_array_equal(here.ids, there.ids)
    np.testing.assert_array_equal(here.val_ids, there.val_ids)
    np.testing.assert_array_equal(here.centroids, there.centroids)
    assert (len(here.ids), len(here.val_ids), here.centroids.shape) == (1438, 359, (12, 8))
    assert set(here.ids) == set(range(12))
    assert 0.2 < scores["cluster/nmi"] < 0.8
    assert 30 < scores["cluster/purity"] < 90
    assert (tmp_path / "here" / "net_clusters.png").stat().st_size > 10_000


def test_cluster_of_a_sample_with_components_does_not_depend_on_the_number_of_processes(tmp_path, ranks):
    more = {"pca": 3, "sample": 700}
    on_ranks(0, 1, tmp_path / "here", more)
    ranks(2).run(on_ranks, tmp_path / "there", more)
    here, there = (read_clusters(tmp_path / place / "c.npz") for place in ("here", "there"))
    for name in ("ids", "val_ids", "centroids", "pca_mean", "pca_axes"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_cluster_of_float16_features_is_about_that_of_float32(tmp_path):
    scores = run(tmp_path / "half", features_dtype="float16")
    assert scores["cluster/nmi"] == pytest.approx(run(tmp_path / "single")["cluster/nmi"], abs=0.05)
    features = list((tmp_path / "half" / "run" / "features").glob("*/features.npy"))
    assert {np.load(path, mmap_mode="r").dtype for path in features} == {np.dtype("float16")}


def test_cluster_assigns_every_image_to_the_nearest_centroid(tmp_path):
    run(tmp_path / "a")
    found = read_clusters(tmp_path / "a" / "c.npz")
    module = digits_module()
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
    """Fails at the sixth batch."""

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


def test_cluster_resumes_an_extraction_and_reuses_it_for_another_k(tmp_path):
    run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", Dies())
    run(tmp_path / "cut", Counts())
    assert Counts.images == 1438 - 500 + 359 + 1, "what was missing, and one image of the second split for its width"
    whole, cut = (read_clusters(tmp_path / name / "c.npz") for name in ("whole", "cut"))
    np.testing.assert_array_equal(whole.ids, cut.ids)
    np.testing.assert_array_equal(whole.val_ids, cut.val_ids)
    before = Counts.images
    run(tmp_path / "cut", Counts(), k=5, output=tmp_path / "cut" / "five.npz")
    assert Counts.images == before
    assert len(read_clusters(tmp_path / "cut" / "five.npz").centroids) == 5


def test_cluster_refuses_a_feature_folder_without_its_key(tmp_path):
    run(tmp_path / "a")
    for path in (tmp_path / "a" / "run" / "features").glob("train-*/cache_key.json"):
        path.write_text("{}")
    with pytest.raises(UserError, match="holds features of another weights"):
        run(tmp_path / "a", output=tmp_path / "b.npz")


class Constant(Position):
    def forward(self, x):
        return torch.ones(len(x), 3)


class Broken(Position):
    def forward(self, x):
        return torch.full((len(x), 3), torch.nan)


def test_cluster_refuses_collapsed_and_broken_features(tmp_path):
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
        ({"k": 1}, "--num_clusters 1: needs 2 to 50"),
        ({"k": 51}, "--num_clusters 51: needs 2 to 50"),
        ({"output": Path("ids.txt")}, "--cluster_output ids.txt must end in .npz"),
        ({"sample": 11}, "--cluster_sample 11: k-means of 12 clusters needs as many rows"),
        ({"sample": 15, "pca": 16}, "--pca 16 needs as many rows as components; raise --cluster_sample 15"),
    ],
)
def test_check_cluster_settings_refuses_what_cannot_work(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        check_cluster_settings(settings_of(tmp_path, **more), 50)


def test_cluster_settings_are_checked_before_features_are_extracted(tmp_path):
    flags = Namespace(num_clusters=12, cluster_output=str(tmp_path / "c.npz"), cluster_iterations=20, cluster_seed=0,
                      cluster_backend="torch", cluster_sample=None, pca=None, features_dir=None,
                      features_dtype="float32")  # fmt: skip
    labels = TrainingLabels(50, 0, 0, 0)
    assert cluster_settings(flags, labels, print) == settings_of(tmp_path)
    (tmp_path / "c.npz").write_text("precious")
    with pytest.raises(UserError, match=r"c.npz exists and is not overwritten; name another file"):
        cluster_settings(flags, labels, print)


def test_sample_rows_are_sorted_and_as_many_as_asked_or_as_memory_allows(tmp_path, monkeypatch):
    x = np.zeros((100, 8), np.float32)
    assert sample_rows(x, settings_of(tmp_path)).tolist() == list(range(100))
    rows = sample_rows(x, settings_of(tmp_path, sample=30))
    assert len(set(rows)) == 30
    assert (np.diff(rows) > 0).all()
    assert not np.array_equal(rows, sample_rows(x, settings_of(tmp_path, sample=30, seed=1)))
    monkeypatch.setattr("evaluation.cluster_images.machine_memory", lambda: 100 * 8 * 4)
    assert len(sample_rows(x, settings_of(tmp_path))) == 40
    with pytest.raises(UserError, match="40 rows of features fit in memory, --num_clusters 41 needs as many"):
        sample_rows(x, settings_of(tmp_path, k=41))


def test_cluster_of_a_sample_with_components(tmp_path, capsys):
    run(tmp_path / "a", sample=300, pca=3)
    found = read_clusters(tmp_path / "a" / "c.npz")
    assert found.centroids.shape == (12, 3)
    assert (found.pca_mean.shape, found.pca_axes.shape) == ((8,), (8, 3))
    assert len(found.ids) == 1438
    assert "a sample of 300 of 1,438 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("k", "advice"),
    [(12, None), (2, "13 to 250 are usual"), (251, "few images in each, much of them noise"), (250, None), (13, None)],
)
def test_describe_advises_on_the_number_of_clusters(tmp_path, k, advice):
    sizes = {"smallest": 1, "median": 2.5, "largest": 9, "empty": 0}
    images = 5000 if k != 12 else 4800
    result = KMeans(torch.zeros(k, 2), [0.5, 0.25], 3)
    text = describe(settings_of(tmp_path, k=k), images, images, result, sizes, [])
    assert "1 iterations on all" in text
    assert "0.5 -> 0.25, 3 empty clusters re-seeded" in text
    assert "1 in the smallest of" in text
    assert "NMI" not in text
    assert ("\n  advice" in text) == (advice is not None)
    assert (advice or "") in text
