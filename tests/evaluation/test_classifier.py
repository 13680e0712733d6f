"""Linear classifiers and fine-tuning: which images they learn from, what they choose by, what they leave alone."""

from argparse import Namespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evaluation import classifier
from evaluation.features import FeatureSet, extract
from utils.batch import Batch
from utils.errors import UserError


def test_a_fraction_is_balanced_nested_and_fixed():
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 20)[torch.randperm(103)]
    few, many = classifier.balanced_rows(y, 0.1, 0), classifier.balanced_rows(y, 0.5, 0)
    assert torch.bincount(y[few]).tolist() == [5, 3, 1], "at least one of each class"
    assert torch.bincount(y[many]).tolist() == [25, 15, 2]
    assert set(few.tolist()) <= set(many.tolist())
    assert torch.equal(few, classifier.balanced_rows(y, 0.1, 0))
    assert not torch.equal(few, classifier.balanced_rows(y, 0.1, 1))
    assert torch.equal(classifier.balanced_rows(y, 1.0, 0), (y >= 0).nonzero().flatten())


def test_what_is_held_out_is_not_learned_from():
    y = torch.arange(100) % 4
    args = Namespace(label_fraction=0.4, lr=[0.1, 1.0], seed=0)
    rows, held = classifier.split_rows(y, args)
    assert not set(rows.tolist()) & set(held.tolist())
    assert (len(rows), len(held)) == (36, 4)
    one = Namespace(label_fraction=0.4, lr=[0.1], seed=0)
    assert [len(part) for part in classifier.split_rows(y, one)] == [40, 0]
    with pytest.raises(UserError, match="--lr 0.1 1: 4 labelled images are too few .* name one --lr"):
        classifier.split_rows(y, Namespace(label_fraction=0.04, lr=[0.1, 1.0], seed=0))


class Clean(list):
    """A loader of one batch."""

    device = torch.device("cpu")

    def __init__(self, features):
        super().__init__([Batch(torch.arange(len(features.x)), [features.x], features.y)])
        self.images = len(features.x)


class Points:
    """A subject whose images are points in the plane, three classes apart from each other."""

    def __init__(self, network, **args):
        g = torch.Generator().manual_seed(0)
        usual = {"lr": [1.0], "epochs": 30, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "seed": 0,
                 "scheduler": "cosine", "lr_decay_steps": [6], "lr_decay_factor": 1, "label_fraction": 1.0}  # fmt: skip
        self.args, self.network, self.title = Namespace(**usual | args), network, "points"
        self.classes, self.device, self.data, self.seen = 3, torch.device("cpu"), self, []
        y = torch.arange(90) % 3
        at = torch.tensor([[-1.0, -2], [2, 0], [-1, 2]])
        self.points = {s: FeatureSet(at[y] + 0.3 * torch.randn(90, 2, generator=g), y) for s in ("train", "val")}

    def train_subset_loader(self, rows):
        self.seen.append(rows)
        self.batch_size, self.rows = 256, rows
        return self

    def __len__(self):
        return 1

    def epoch(self, epoch):
        x, y = self.points["train"]
        yield Batch(self.rows, [x[self.rows]], y[self.rows])

    def eval_dataloader(self, split, device):
        return Clean(self.points[split])

    @property
    def classifier(self):
        return extract(self.network, self.eval_dataloader("train", self.device))

    @property
    def val(self):
        return extract(self.network, self.eval_dataloader("val", self.device))


def test_a_linear_classifier_learns_what_is_separable_and_leaves_the_backbone_alone():
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert classifier.linear_accuracy(Points(network)) == (100.0, 1.0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_one_step_is_the_gradient_of_the_cross_entropy():
    points = Points(nn.Identity(), epochs=1, scheduler="none", momentum=0.0, lr=[0.5])
    x, y = points.points["train"]
    head = classifier.new_head(2, 3, torch.device("cpu"))
    loss = F.cross_entropy(head(x), y)
    weight = (head.weight - 0.5 * torch.autograd.grad(loss, head.weight, retain_graph=True)[0]).detach()
    bias = (head.bias - 0.5 * torch.autograd.grad(loss, head.bias)[0]).detach()
    expected = nn.Linear(2, 3)
    expected.load_state_dict({"weight": weight, "bias": bias})
    assert classifier.linear_accuracy(points)[0] == pytest.approx(classifier.accuracy(expected, points.val))


def test_the_rate_is_chosen_on_what_was_held_out(monkeypatch):
    """1e-9 learns nothing; the validation set is asked once, after the choice."""
    asked = []
    original = classifier.accuracy
    monkeypatch.setattr(classifier, "accuracy", lambda head, f: (asked.append(len(f.x)), original(head, f))[1])
    points = Points(nn.Identity(), lr=[1e-9, 1.0, 1e-8])
    score, lr = classifier.linear_accuracy(points)
    assert (score, lr) == (100.0, 1.0)
    assert asked == [9, 9, 9, 90]
    assert len(points.seen[0]) == 81


def test_fine_tuning_trains_a_copy():
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    score, _ = classifier.finetune_accuracy(Points(network, lr=[1e-9, 1.0]))
    assert score > 95
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_fine_tuning_trains_the_backbone(monkeypatch):
    kept = []
    monkeypatch.setattr(classifier, "extract", lambda net, loader: (kept.append(net), extract(net, loader))[1])
    network = nn.Sequential(nn.Linear(2, 2))
    classifier.finetune_accuracy(Points(network))
    assert not torch.equal(kept[0][0].weight, network[0].weight)


def test_a_rate_that_explodes_is_told():
    with pytest.raises(UserError, match=r"points, finetune 1e\+30: the loss is (nan|inf) in epoch \d+; lower --lr"):
        classifier.finetune_accuracy(Points(nn.Sequential(nn.Linear(2, 2)), lr=[1e30]))


def test_unlabelled_rows_do_not_count():
    head = classifier.new_head(2, 3, torch.device("cpu"))
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 2, -1, -1, -1])
    assert classifier.accuracy(head, FeatureSet(x, y)) == classifier.accuracy(head, FeatureSet(x[:3], y[:3]))
