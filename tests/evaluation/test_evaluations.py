"""Judging: numbers against loops and scikit-learn, features in order, pictures that are there."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as mpimg
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from data.datasets import read_dataset
from data.pipelines.choose import build_pipeline
from data.views import ViewSpec
from evaluation import pictures
from evaluation.evaluations import EVALUATIONS, check_and_fill_defaults, evaluate
from evaluation.features import FeatureSet, extract
from evaluation.knn import knn_accuracy, neighbours
from evaluation.logistic import STRENGTHS, _objective, fewshot_accuracy, fit, fit_and_score, probe_accuracy
from evaluation.table import table
from evaluation.target import EvaluationTarget, RawPixels
from tests.helpers.commands import plan_of
from utils.errors import UserError

CPU = torch.device("cpu")


def blobs(n=60, d=5, classes=3, seed=0, unknown=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, d, generator=g) + 1.5 * torch.eye(classes, d)[y]
    y[:unknown] = -1
    return FeatureSet(x, y)


def naive_knn(train, val, k, classes):
    right = 0
    for q, label in zip(val.x.double(), val.y, strict=True):
        cosines = [float(q @ t / (q.norm() * t.norm())) for t in train.x.double()]
        best = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = [sum(np.exp(cosines[i] / 0.07) for i in best if train.y[i] == c) for c in range(classes)]
        right += int(np.argmax(votes)) == int(label)
    return 100 * right / len(val.y)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_knn_agrees_with_a_loop(k):
    train, val = blobs(), blobs(seed=1)
    assert knn_accuracy(train, val, [k], 3)[k] == pytest.approx(naive_knn(train, val, k, 3))


def test_knn_in_chunks_is_the_same():
    train, val = blobs(), blobs(seed=1)
    whole, chunked = neighbours(train.x, val.x, 9), neighbours(train.x, val.x, 9, at_once=70)
    assert torch.equal(whole[1], chunked[1])


def test_knn_ignores_unknown_labels_and_refuses_too_many_neighbours():
    train, val = blobs(unknown=20), blobs(seed=1, unknown=10)
    assert knn_accuracy(train, val, [5], 3) == knn_accuracy(train.labelled(), val.labelled(), [5], 3)
    with pytest.raises(ValueError, match="41 neighbours of 40"):
        knn_accuracy(train, val, [41], 3)


def test_a_bank_that_holds_the_queries_is_always_right():
    assert knn_accuracy(blobs(), blobs(), [1], 3)[1] == 100


@pytest.mark.parametrize("strength", [1e-4, 0.1, 100])
def test_logistic_regression_is_scikit_learns(monkeypatch, strength):
    """To the optimum, in float64: both stop early by default, where the loss is flat."""
    monkeypatch.setattr("evaluation.logistic.GRADIENT", 1e-9)
    train, val = (FeatureSet(f.x.double() * 3 + 5, f.y) for f in (blobs(300), blobs(100, seed=1)))
    scaler = StandardScaler().fit(train.x)
    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-10).fit(scaler.transform(train.x), train.y)
    ours = fit(train, strength, CPU)
    np.testing.assert_allclose(ours.weight.T, model.coef_, atol=1e-4)
    found = (((val.x - ours.mean) / ours.std) @ ours.weight + ours.bias).softmax(dim=1)
    np.testing.assert_allclose(found, model.predict_proba(scaler.transform(val.x)), atol=2e-5)
    assert ours.accuracy(val) == pytest.approx(100 * model.score(scaler.transform(val.x), val.y))


def test_logistic_regression_in_chunks_from_elsewhere_and_with_missing_classes():
    train, val = blobs(300), blobs(100, seed=1)
    whole, y = fit(train, 0.1, CPU), train.y
    w = torch.cat([whole.weight, whole.bias[None]])
    w.grad = torch.zeros_like(w)
    x = (train.x - whole.mean) / whole.std
    once, gradient = _objective(w, x, y, 0.1), w.grad.clone()
    assert _objective(w, x, y, 0.1, at_once=50).item() == pytest.approx(once.item(), rel=1e-6)
    torch.testing.assert_close(w.grad, gradient, rtol=0, atol=1e-6)
    assert gradient.abs().max() < 1e-5, "it stands at the optimum"
    warm = fit(train, 0.1, CPU, start=fit(train, 100, CPU))
    torch.testing.assert_close(warm.weight, whole.weight, rtol=0, atol=1e-3)
    few = FeatureSet(train.x[y != 1], y[y != 1])
    assert fit(few, 0.1, CPU).classes.tolist() == [0, 2]
    assert fit(few, 0.1, CPU).accuracy(FeatureSet(val.x, torch.ones_like(val.y))) == 0
    with pytest.raises(UserError, match="all 100 labelled training images are of one class"):
        fit(FeatureSet(train.x[y == 1], y[y == 1]), 0.1, CPU)


def test_the_penalty_is_chosen_without_the_validation_set():
    train, val = blobs(300), blobs(100, seed=1)
    accuracy, strength = probe_accuracy(train, val, 0, CPU)
    assert strength in STRENGTHS
    assert accuracy == fit_and_score(train, val, strength, CPU)
    assert probe_accuracy(train, FeatureSet(val.x, val.y.roll(1)), 0, CPU)[1] == strength


def test_fewshot_draws_the_same_number_of_each_class(monkeypatch):
    drawn = []

    def remember(train, val, strength, device):
        drawn.append(train.y)
        return 0.0

    monkeypatch.setattr("evaluation.logistic.fit_and_score", remember)
    fewshot_accuracy(blobs(unknown=3), blobs(seed=1), shots=4, draws=3, seed=0, device=CPU)
    assert [torch.bincount(y).tolist() for y in drawn] == [[4, 4, 4]] * 3
    with pytest.raises(UserError, match="--shots 30 needs as many images of each class; class 0 has 20"):
        fewshot_accuracy(blobs(), blobs(), shots=30, draws=1, seed=0, device=CPU)


class Position(nn.Module):
    """Features that tell which image they came from: the mean and the corner of its pixels."""

    def forward(self, x):
        return torch.stack([x.mean(dim=(1, 2, 3)), x[:, 0, 0, 0]], dim=1)


def digits():
    args = plan_of("simclr", "--batch_size", "100", "--num_workers", "0")
    return build_pipeline("memory", read_dataset("digits", "none", None, None), [ViewSpec(32, count=2)], args)


def test_features_come_in_data_set_order_and_leave_the_network_as_it_was():
    network = nn.Sequential(nn.BatchNorm2d(3), Position())
    network[0].eval()
    module = digits()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    features = extract(network, module.eval_dataloader("train", CPU))
    assert torch.equal(features.y, module.data.train.labels)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert (network.training, network[0].training, network[1].training) == (True, False, True)
    alone = network.eval()(module.finish(next(iter(module.eval_dataloader("train", CPU))), -1).views[0])
    torch.testing.assert_close(features.x[:100], alone)


def sharded(rank, world):
    features = extract(Position(), digits().eval_dataloader("val", CPU))
    return features.x, features.y


def test_features_do_not_depend_on_the_number_of_processes(ranks):
    x, y = sharded(0, 1)
    for other_x, other_y in ranks(2).run(sharded):
        torch.testing.assert_close(other_x, x)
        assert torch.equal(other_y, y)


class Few(EvaluationTarget):
    """A subject with fewer and narrower clean features, so that every evaluation takes moments."""

    def _clean(self, split):
        features = super()._clean(split)
        rows = 200 if split == "train" else None
        return FeatureSet(features.x[:rows, :50], features.y[:rows])


def judge_args(folder, **more):
    usual = {"features_dir": str(folder), "dataset": "digits", "seed": 0, "knn_k": [5], "shots": [2], "draws": 2,
             "evaluation": list(EVALUATIONS), "lr": [0.1, 1.0], "epochs": 1, "optimizer": "sgd", "momentum": 0.9,
             "weight_decay": 0.0, "scheduler": "cosine", "lr_decay_steps": [60], "lr_decay_factor": 0.1,
             "label_fraction": 1.0, "embedding": "tsne", "layer": None,
             "num_clusters": 4, "clusters": str(folder / "c.npz"), "cluster_iterations": 2, "cluster_seed": 0,
             "cluster_backend": "torch", "cluster_sample": None, "pca": None, "home": folder, "source": "w",
             "backbone": "b"}  # fmt: skip
    return Namespace(**usual | more)


def subject(network, args, title="x"):
    module, folder = digits(), Path(args.features_dir)
    crops = module.with_views([ViewSpec(32, jitter=0.0)])
    return Few(title, network, module, crops, CPU, args, folder)


@pytest.fixture
def no_embedding(monkeypatch):
    """t-SNE takes longer than all the rest."""
    monkeypatch.setattr("evaluation.pictures.embedding", lambda *args: None)


def test_every_evaluation_fills_its_columns(tmp_path, no_embedding):
    args = judge_args(tmp_path, shots=[1, 4])
    networks = {"raw pixels": RawPixels(), "position": Position()}
    rows = {name: evaluate(subject(net, args, title=name)) for name, net in networks.items()}
    text = table(rows)
    assert {"10 labels", "40 labels", "kNN 5", "linear probe", "RankMe", "alignment", "transfer kNN 5"} <= set(
        rows["position"]
    )
    assert len({len(line) for line in text.splitlines()}) == 1, "columns are aligned"
    assert f"{rows['raw pixels']['kNN 5']:.1f}" in text
    assert f"{rows['raw pixels']['uniformity']:.3f}" in text


Y = torch.tensor([0] * 30 + [1] * 6 + [-1] * 9)  # labels


def test_what_is_not_named_is_what_the_labels_allow(tmp_path):
    said = []
    args = check_and_fill_defaults(judge_args(tmp_path, knn_k=None, shots=None), Y, Y, said.append)
    assert (args.knn_k, args.shots) == ([20], [1, 2, 4])
    assert said == ["  note: --knn_k 200 left out: there are 36 labelled training images",
                    "  note: --shots 8 16 left out: there are 6 images in the smallest class"]  # fmt: skip
    assert check_and_fill_defaults(judge_args(tmp_path, knn_k=[36], shots=[6]), Y, Y, said.append).knn_k == [36]


@pytest.mark.parametrize(
    ("more", "labels", "val", "message"),
    [
        ({"knn_k": [20, 37]}, Y, Y, "--knn_k 37: there are 36 labelled training images; lower it"),
        ({"label_fraction": 0.05}, Y, Y, "--label_fraction 0.05 of 36 labels is less than one for each of 2 classes"),
        ({"shots": [7]}, Y, Y, "--shots 7: there are 6 images in the smallest class; lower it"),
        ({}, Y, None, "needs labels and validation images, digits has no validation images here"),
        ({}, Y.new_full((9,), -1), Y, "--evaluation fewshot needs labels .* digits has no labels here"),
        ({}, Y, Y.new_full((9,), -1), "digits has no labels here; name --train_dir and --val_dir"),
    ],
)
def test_what_the_labels_do_not_allow_is_refused(tmp_path, more, labels, val, message):
    with pytest.raises(UserError, match=message):
        check_and_fill_defaults(judge_args(tmp_path, **more), labels, val, print)


def test_a_number_that_a_row_lacks_is_a_dash():
    lines = table({"raw": {"kNN 5": 50.0}, "net": {"kNN 5": 60.0, "std": 0.01234}}).splitlines()
    assert lines[2].split() == ["raw", "50.0", "-"]
    assert lines[3].split() == ["net", "60.0", "0.0123"]


def test_pairs_are_two_views_of_the_same_images(tmp_path):
    a, b = subject(RawPixels(), judge_args(tmp_path)).pair()
    assert a.shape == b.shape == (1438, 3 * 32 * 32)
    assert not torch.equal(a, b)
    near = torch.cosine_similarity(a, b).mean()
    assert near > torch.cosine_similarity(a, b.roll(1, dims=0)).mean() + 0.05


def test_judging_changes_nothing_in_the_network(tmp_path, no_embedding):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(8))
    network(torch.zeros(2, 3, 32, 32))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    evaluate(subject(network, judge_args(tmp_path)))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


def assert_drawn(path):
    image = mpimg.imread(path)
    assert image[..., :3].std() > 0.03, f"{path} is blank"


def test_pictures(tmp_path):
    pictures.curves(tmp_path / "c.png", {"loss": [(0, 2.0), (5, 1.0)], "knn_20": [(5, 80.0)]})
    pictures.curves(tmp_path / "only loss.png", {"loss": [(0, 2.0), (5, 1.0)]})
    pictures.embedding(tmp_path / "e.png", blobs(), [], seed=0)
    pictures.embedding(tmp_path / "pca.png", blobs(), [], seed=0, how="pca")
    pictures.embedding(tmp_path / "no labels.png", FeatureSet(blobs().x, torch.full((60,), -1)), [], seed=0)
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    right = np.array([[True, False], [False, True]])
    pictures.neighbour_grid(tmp_path / "n.png", [image, image], [[image, image]] * 2, right, ["cat", "dog"])
    pictures.neighbour_grid(tmp_path / "n2.png", [image], [[image, image]], None, [])
    pictures.confusion(tmp_path / "m.png", blobs().y, blobs().y.roll(1), ["a", "b", "c"])
    pictures.confusion(tmp_path / "m100.png", torch.arange(100), torch.arange(100), [])
    for path in tmp_path.iterdir():
        assert_drawn(path)


def test_the_plane_of_pca_is_that_of_the_largest_singular_values():
    x = blobs().x.double() * torch.tensor([1, 5, 0.1, 3, 0.2])
    u, s, _ = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    np.testing.assert_allclose(abs(pictures._pca(x.numpy(), 0)), (u * s)[:, :2].abs(), atol=1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*n_jobs.*", "ignore:.*force_all_finite.*")
def test_umap_keeps_apart_what_is_apart(tmp_path, monkeypatch):
    pytest.importorskip("umap", reason="umap-learn is in requirements-umap.txt")
    y = torch.arange(60) % 2
    flat = torch.tensor(pictures.PLANES["umap"][1]((torch.randn(60, 4) + 20 * y[:, None]).numpy(), 0))
    apart = torch.cdist(flat, flat)
    assert apart[y == 0][:, y == 1].min() > apart[y == 0][:, y == 0].median()
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="--embedding umap needs umap-learn .* pip install -r requirements-umap.txt"):
        pictures.embedding(tmp_path / "u.png", blobs(), [], seed=0, how="umap")


def test_queries_are_spread_over_the_classes():
    bank, queries = blobs(90), blobs(90, seed=1)
    chosen, rows = pictures.nearest_rows(bank, queries, k=4, count=6, seed=0)
    assert torch.bincount(queries.y[chosen]).tolist() == [2, 2, 2]
    assert rows.shape == (6, 4)
