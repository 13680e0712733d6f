"""Judging: numbers against loops and scikit-learn, features in order, pictures that are there."""

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
from data.pipelines import build_pipeline
from data.views import ViewSpec
from evaluation import pictures
from evaluation.features import Features, extract
from evaluation.judge import EVALUATIONS, RawPixels, Subject, judge, table
from evaluation.knn import knn_accuracy, neighbours
from evaluation.linear import fewshot_accuracy, fit_and_score, probe_accuracy
from tests.helpers import arguments
from utils.errors import UserError


def blobs(n=60, d=5, classes=3, seed=0, unknown=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, d, generator=g) + 1.5 * torch.eye(classes, d)[y]
    y[:unknown] = -1
    return Features(x, y)


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


def test_probe_is_scikit_learns_logistic_regression():
    train, val = blobs(300), blobs(100, seed=1)
    scaler = StandardScaler().fit(train.x)
    model = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(scaler.transform(train.x), train.y)
    assert fit_and_score(train, val, 0.1) == pytest.approx(100 * model.score(scaler.transform(val.x), val.y), abs=1.01)
    accuracy, strength = probe_accuracy(train, val, seed=0)
    assert accuracy > 60
    assert 1e-4 <= strength <= 100


def test_fewshot_draws_the_same_number_of_each_class(monkeypatch):
    drawn = []

    def remember(train, val, strength):
        drawn.append(train.y)
        return 0.0

    monkeypatch.setattr("evaluation.linear.fit_and_score", remember)
    fewshot_accuracy(blobs(unknown=3), blobs(seed=1), shots=4, draws=3, seed=0)
    assert [torch.bincount(y).tolist() for y in drawn] == [[4, 4, 4]] * 3
    with pytest.raises(UserError, match="--shots 30 needs as many images of each class; class 0 has 20"):
        fewshot_accuracy(blobs(), blobs(), shots=30, draws=1, seed=0)


class Position(nn.Module):
    """Features that tell which image they came from: the mean and the corner of its pixels."""

    def forward(self, x):
        return torch.stack([x.mean(dim=(1, 2, 3)), x[:, 0, 0, 0]], dim=1)


def digits():
    args = arguments("simclr", "--batch_size", "100", "--num_workers", "0")
    return build_pipeline("device", read_dataset("digits", "none", None, None), [ViewSpec(32, count=2)], args)


def test_features_come_in_data_set_order_and_leave_the_network_as_it_was():
    network = nn.Sequential(nn.BatchNorm2d(3), Position())
    network[0].eval()
    module = digits()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    features = extract(network, module.plain_dataloader("train", torch.device("cpu")))
    assert torch.equal(features.y, module.data.train.labels)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert (network.training, network[0].training, network[1].training) == (True, False, True)
    alone = network.eval()(
        module.finish(next(iter(module.plain_dataloader("train", torch.device("cpu")))), "train", -1).views[0]
    )
    torch.testing.assert_close(features.x[:100], alone)


def sharded(rank, world):
    features = extract(Position(), digits().plain_dataloader("val", torch.device("cpu")))
    return features.x, features.y


def test_features_do_not_depend_on_the_number_of_processes(ranks):
    x, y = sharded(0, 1)
    for other_x, other_y in ranks(2).run(sharded):
        torch.testing.assert_close(other_x, x)
        assert torch.equal(other_y, y)


class Few(Subject):
    """A subject with fewer and narrower clean features, so that every evaluation takes moments."""

    def _clean(self, split):
        features = super()._clean(split)
        rows = 200 if split == "train" else None
        return Features(features.x[:rows, :50], features.y[:rows])


def judge_args(folder, **more):
    usual = {"features_dir": str(folder), "dataset": "digits", "seed": 0, "knn_k": [5], "shots": [2], "draws": 2,
             "evaluation": list(EVALUATIONS), "lr": [0.1, 1.0], "epochs": 1, "optimizer": "sgd", "momentum": 0.9,
             "weight_decay": 0.0, "scheduler": "cosine", "lr_decay_steps": [60], "lr_decay_factor": 0.1,
             "label_fraction": 1.0}  # fmt: skip
    return Namespace(**usual | more)


def subject(network, args, title="x"):
    module, folder = digits(), Path(args.features_dir)
    crops = module.with_views([ViewSpec(32, jitter=0.0)])
    return Few(title, network, module, crops, torch.device("cpu"), args, folder)


@pytest.fixture
def no_embedding(monkeypatch):
    """t-SNE takes longer than all the rest."""
    monkeypatch.setattr("evaluation.pictures.embedding", lambda *args: None)


def test_every_evaluation_fills_its_columns(tmp_path, no_embedding):
    args = judge_args(tmp_path, knn_k=[5, 500], shots=[1, 4])
    networks = {"raw pixels": RawPixels(), "position": Position()}
    rows = {name: judge(subject(net, args, title=name)) for name, net in networks.items()}
    text = table(rows)
    assert {"10 labels", "40 labels", "kNN 5", "linear probe", "RankMe", "alignment", "transfer kNN 5"} <= set(
        rows["position"]
    )
    assert "kNN 500" not in rows["position"], "there are only 200 images"
    assert len({len(line) for line in text.splitlines()}) == 1, "columns are aligned"
    assert f"{rows['raw pixels']['kNN 5']:.1f}" in text
    assert f"{rows['raw pixels']['uniformity']:.3f}" in text


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
    judge(subject(network, judge_args(tmp_path)))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


def assert_drawn(path):
    image = mpimg.imread(path)
    assert image[..., :3].std() > 0.03, f"{path} is blank"


def test_pictures(tmp_path):
    pictures.curves(tmp_path / "c.png", {"loss": [(0, 2.0), (5, 1.0)], "knn_20": [(5, 80.0)]})
    pictures.curves(tmp_path / "only loss.png", {"loss": [(0, 2.0), (5, 1.0)]})
    pictures.embedding(tmp_path / "e.png", blobs(), [], seed=0)
    pictures.embedding(tmp_path / "no labels.png", Features(blobs().x, torch.full((60,), -1)), [], seed=0)
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    right = np.array([[True, False], [False, True]])
    pictures.neighbour_grid(tmp_path / "n.png", [image, image], [[image, image]] * 2, right, ["cat", "dog"])
    pictures.neighbour_grid(tmp_path / "n2.png", [image], [[image, image]], None, [])
    pictures.confusion(tmp_path / "m.png", blobs().y, blobs().y.roll(1), ["a", "b", "c"])
    pictures.confusion(tmp_path / "m100.png", torch.arange(100), torch.arange(100), [])
    for path in tmp_path.iterdir():
        assert_drawn(path)


def test_queries_are_spread_over_the_classes():
    bank, queries = blobs(90), blobs(90, seed=1)
    chosen, rows = pictures.nearest_rows(bank, queries, k=4, count=6, seed=0)
    assert torch.bincount(queries.y[chosen]).tolist() == [2, 2, 2]
    assert rows.shape == (6, 4)
