"""Tests of linear classifiers and fine-tuning: training rows, the choice of a rate, parameter groups, the backbone."""

import weakref
from argparse import ArgumentParser, Namespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evaluation import classifier
from evaluation.classifier import add_classifier_flags, classifier_settings
from evaluation.features import FeatureSet
from evaluation.settings import TrainingLabels, add_label_fraction_flag
from evaluation.target import EvaluationTarget, NetworkInfo
from tests.helpers.collectives import CountCollectives
from tests.helpers.evaluation import Pixels, target_of
from utils.batch import Batch
from utils.errors import UserError


def test_balanced_rows_are_balanced_and_nested():
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 20)[torch.randperm(103)]
    few, many = classifier.balanced_rows(y, 0.1, 0), classifier.balanced_rows(y, 0.5, 0)
    assert torch.bincount(y[few]).tolist() == [5, 3, 1], "at least one of each class"
    assert torch.bincount(y[many]).tolist() == [25, 15, 2]
    assert set(few.tolist()) <= set(many.tolist())
    assert torch.equal(few, classifier.balanced_rows(y, 0.1, 0))
    assert not torch.equal(few, classifier.balanced_rows(y, 0.1, 1))
    assert torch.equal(classifier.balanced_rows(y, 1.0, 0), (y >= 0).nonzero().flatten())


def test_split_rows_holds_out_a_tenth_where_rates_are_chosen():
    y = torch.arange(100) % 4
    rows, held_out = classifier.split_rows(y, 0.4, [0.1, 1.0], 0)
    assert not set(rows.tolist()) & set(held_out.tolist())
    assert (len(rows), len(held_out)) == (36, 4)
    assert [len(part) for part in classifier.split_rows(y, 0.4, [0.1], 0)] == [40, 0]
    with pytest.raises(UserError, match="--lr 0.1 1: 4 labelled images are too few .* name one --lr"):
        classifier.split_rows(y, 0.04, [0.1, 1.0], 0)


def settings_of(*argv):
    """Settings as from flags, quick ones by default."""
    parser = ArgumentParser()
    add_classifier_flags(parser)
    add_label_fraction_flag(parser)
    return classifier_settings(parser.parse_args(["--epochs", "30", "--lr", "1", *argv]), LABELS, print)


LABELS = TrainingLabels(90, 90, 3, 30)


def test_several_rates_need_two_images_of_each_class_before_any_work():
    """One to train on, and one to choose on."""
    settings_of("--lr", "0.1", "1", "--label_fraction", "0.05", "1")
    settings_of("--lr", "0.1", "--label_fraction", "0.04")
    few = r"--lr 0.1 1: --label_fraction 0.04 leaves 1 image of a class, and choosing a rate needs 2; name one --lr, or"
    with pytest.raises(UserError, match=few):
        settings_of("--lr", "0.1", "1", "--label_fraction", "0.04", "1")
    flags = Namespace(lr=[0.1, 1.0], label_fraction=[1.0])
    with pytest.raises(UserError, match="a class with 1 image, and choosing a rate needs 2; name one --lr$"):
        classifier_settings(flags, TrainingLabels(90, 90, 3, 1), print)


class Clean(list):
    """A loader of one batch."""

    device = torch.device("cpu")

    def __init__(self, features):
        super().__init__([Batch(torch.arange(len(features.x)), [features.x], features.y)])
        self.images = len(features.x)


class PointsTarget(EvaluationTarget):
    """A target whose images are points in the plane, three classes apart from each other."""

    def __init__(self, network):
        g = torch.Generator().manual_seed(0)
        self.network, self.title, self.seed, self.info = network, "points", 0, NetworkInfo("points", "b")
        self.folder = None
        self.classes, self.device, self.data, self.seen, self.asked = 3, torch.device("cpu"), self, [], []
        self.feature_width = network(torch.zeros(2, 2)).shape[1]
        y = torch.arange(90) % 3
        at = torch.tensor([[-1.0, -2], [2, 0], [-1, 2]])
        self.points = {s: FeatureSet(at[y] + 0.3 * torch.randn(90, 2, generator=g), y) for s in ("train", "val")}

    def splits(self):
        return self.points

    def label_sets(self, split):
        return None

    @property
    def train_labels(self):
        return self.points["train"].y

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
        self.asked.append(split)
        return Clean(self.points[split])


def test_linear_accuracy_learns_separable_classes_and_leaves_the_backbone_alone():
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    target = PointsTarget(network.eval())
    assert classifier.linear_accuracy(target, settings_of()) == (100.0, 1.0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("accuracy", [classifier.linear_accuracy, classifier.finetune_accuracy])
def test_one_rate_extracts_no_training_images(accuracy):
    target = PointsTarget(nn.Sequential(nn.Linear(2, 2)))
    accuracy(target, settings_of("--epochs", "1"))
    assert target.asked == ["val"]
    accuracy(target, settings_of("--epochs", "1", "--lr", "0.1", "1"))
    assert "train" in target.asked, "rates are chosen on held-out training images"


def test_linear_accuracy_takes_one_step_along_the_gradient_of_the_cross_entropy():
    target = PointsTarget(nn.Identity())
    x, y = target.points["train"]
    head = classifier.new_head(2, 3, torch.device("cpu"))
    loss = F.cross_entropy(head(x), y)
    weight = (head.weight - 0.5 * torch.autograd.grad(loss, head.weight, retain_graph=True)[0]).detach()
    bias = (head.bias - 0.5 * torch.autograd.grad(loss, head.bias)[0]).detach()
    expected = nn.Linear(2, 3)
    expected.load_state_dict({"weight": weight, "bias": bias})
    settings = settings_of("--epochs", "1", "--scheduler", "none", "--momentum", "0", "--lr", "0.5")
    accuracy = classifier.linear_accuracy(target, settings)[0]
    assert accuracy == pytest.approx(classifier.accuracy(expected, target.points["val"]))


def test_linear_accuracy_chooses_the_rate_on_held_out_images(monkeypatch):
    """1e-9 learns nothing; the validation images are used once, after the choice."""
    evaluated = []
    original = classifier.accuracy
    monkeypatch.setattr(classifier, "accuracy", lambda head, f: (evaluated.append(len(f.x)), original(head, f))[1])
    target = PointsTarget(nn.Identity())
    score, lr = classifier.linear_accuracy(target, settings_of("--lr", "1e-9", "1", "1e-8"))
    assert (score, lr) == (100.0, 1.0)
    assert evaluated == [9, 9, 9, 90]
    assert len(target.seen[0]) == 81


def test_finetune_accuracy_trains_a_copy():
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU())
    target = PointsTarget(network)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert classifier.finetune_accuracy(target, settings_of("--lr", "1e-9", "1"))[0] > 95
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_finetune_trains_the_backbone():
    target = PointsTarget(nn.Sequential(nn.Linear(2, 2)))
    rows = torch.arange(90)
    network, _ = classifier._finetune(target, settings_of(), rows, 1.0)
    assert not torch.equal(network[0].weight, target.network[0].weight)


def test_finetune_keeps_the_best_candidate_only_and_no_gradients(monkeypatch):
    """At each start there are, beside the target's own network, the best one so far and nothing of the others."""
    made, alive, original = [], [], classifier._finetune

    def watched(*args):
        alive.append([lr for lr, *references in made if any(r() is not None for r in references)])
        network, head = original(*args)
        assert all(p.grad is None for p in [*network.parameters(), *head.parameters()])
        made.append((args[-1], weakref.ref(network), weakref.ref(network[0].weight), weakref.ref(head)))
        return network, head

    monkeypatch.setattr(classifier, "_finetune", watched)
    target = PointsTarget(nn.Sequential(nn.Linear(2, 2)))
    score, lr = classifier.finetune_accuracy(target, settings_of("--lr", "1e-9", "1e-8", "1", "1e-7", "1e-6"))
    assert score > 90
    assert lr == 1.0
    assert [len(networks) for networks in alive] == [0, 1, 1, 1, 1]
    assert alive[-2:] == [[1.0], [1.0]]


class WithPositions(nn.Module):
    """A network with a matrix that it exempts from weight decay, as timm's transformers do."""

    def __init__(self):
        super().__init__()
        self.positions, self.layer = nn.Parameter(torch.ones(4, 2)), nn.Linear(2, 2)

    def no_weight_decay(self):
        return {"positions"}

    def forward(self, x):
        return self.layer(x) + 0 * self.positions.sum()


def test_finetune_exempts_from_weight_decay_what_timm_exempts():
    """The gradient of the position matrix is zero, so only weight decay could change it."""
    target = PointsTarget(WithPositions())
    settings = settings_of("--epochs", "2", "--lr", "0.1", "--weight_decay", "0.1")
    network, _ = classifier._finetune(target, settings, torch.arange(90), 0.1)
    assert torch.equal(network.positions, torch.ones(4, 2))


def test_train_names_the_epoch_of_a_loss_that_explodes():
    target = PointsTarget(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UserError, match=r"finetune 1e\+30: the loss is (nan|inf) in epoch \d+; try a lower --lr"):
        classifier.finetune_accuracy(target, settings_of("--lr", "1e30"))


def heads_of(target, monkeypatch, *argv):
    """Accuracy and rate of `linear`, and the weights of the heads that were compared on held-out images."""
    seen, original = [], classifier.accuracy
    monkeypatch.setattr(classifier, "accuracy", lambda head, f: (seen.append(head.weight), original(head, f))[1])
    result = classifier.linear_accuracy(target, settings_of(*argv))
    monkeypatch.undo()
    return result, seen


@pytest.mark.parametrize("rates", [("1e38", "1"), ("1", "1e38")])
def test_a_rate_that_diverges_leaves_the_heads_of_the_others_as_they_are(monkeypatch, capsys, rates):
    target = PointsTarget(nn.Identity())
    result, seen = heads_of(target, monkeypatch, "--lr", *rates)
    assert result == (100.0, 1.0)
    _, alone = heads_of(target, monkeypatch, "--lr", "1e-9", "1")
    assert torch.equal(seen[0], alone[1])
    assert "note: points, linear: the loss at --lr 1e+38 is not finite; the rate is left out" in capsys.readouterr().out


@pytest.mark.parametrize("rates", [("1e30", "1"), ("1", "1e30")])
def test_finetune_leaves_out_a_rate_that_diverges(capsys, rates):
    target = PointsTarget(nn.Sequential(nn.Linear(2, 2)))
    score, lr = classifier.finetune_accuracy(target, settings_of("--lr", *rates))
    assert score > 90
    assert lr == 1.0
    assert "note: points, finetune: the loss at --lr 1e+30 is not finite; the rate is left" in capsys.readouterr().out


@pytest.mark.parametrize("accuracy", [classifier.linear_accuracy, classifier.finetune_accuracy])
@pytest.mark.parametrize("rates", [("1e38",), ("1e38", "2e38")])
def test_rates_that_all_diverge_are_an_error(accuracy, rates):
    target = PointsTarget(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch \d+; try a lower --lr"):
        accuracy(target, settings_of("--lr", *rates))


def _diverged(rank, world):
    """What `train` says of two heads, one of which sees an image that is not finite on the last rank alone."""
    heads = [nn.Linear(2, 3), nn.Linear(2, 3)]
    x = torch.ones(4, 2)

    def losses_of(batch):
        spoilt = x * (float("inf") if rank == world - 1 else 1)
        logits = heads[0](spoilt), heads[1](x)
        return torch.stack([F.cross_entropy(each, batch.labels) for each in logits])

    class Batches(list):
        batch_size = 4

        def epoch(self, epoch):
            return iter(self)

    batches = Batches([Batch(torch.arange(4), [x], torch.arange(4) % 3)])
    return classifier.train(batches, heads, [1.0, 1.0], losses_of, settings_of("--epochs", "1"), "t")


def test_every_rank_leaves_out_the_same_rates(ranks):
    assert ranks(2).run(_diverged) == [[False, True], [False, True]]


def test_accuracy_ignores_unlabelled_rows():
    head = classifier.new_head(2, 3, torch.device("cpu"))
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 2, -1, -1, -1])
    assert classifier.accuracy(head, FeatureSet(x, y)) == classifier.accuracy(head, FeatureSet(x[:3], y[:3]))


def test_scores_say_the_fraction_and_the_chosen_rate(tmp_path):
    target = target_of(Pixels(), tmp_path, images=200)
    settings = settings_of("--epochs", "1", "--label_fraction", "0.5", "1", "--lr", "0.1", "1")
    half, whole = classifier.linear(target, settings)
    assert (half.name, whole.name) == ("linear_sgd_50pct", "linear_sgd")
    assert half.chosen["lr"] in (0.1, 1.0)
    (score,) = classifier.finetune(target, settings_of("--epochs", "1"))
    assert (score.name, score.chosen) == ("finetune", {})


class Recorder(nn.Sequential):
    """A convolutional network that records the layout of its images and the precision it computes in."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 2), nn.Flatten())
        self.seen = []

    def forward(self, x):
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float32
        self.seen.append((x.is_contiguous(memory_format=torch.channels_last), half))
        return super().forward(x)


@pytest.mark.parametrize(("native", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_compute_features_on_a_gpu_is_channels_last_and_bf16_where_that_is_native(native, precision, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: native)
    network, gpu = Recorder(), torch.device("cuda", 0)
    features = classifier.compute_features(network, torch.randn(2, 3, 5, 5), gpu)
    assert network.seen == [(True, precision)]
    assert features.dtype == torch.float32


def test_compute_features_on_a_cpu_is_the_network_itself():
    network, images, cpu = Recorder(), torch.randn(2, 3, 5, 5), torch.device("cpu")
    weight = network[0].weight
    assert torch.equal(classifier.compute_features(network, images, cpu),
                       F.conv2d(images, weight, network[0].bias).flatten(1))  # fmt: skip
    assert network.seen == [(False, torch.float32)]
    assert weight.is_contiguous()


def _averaged(rank, world):
    """Gradients of two modules before and after they are averaged over ranks, and the number of collectives."""
    torch.manual_seed(rank)
    modules = [nn.Conv2d(3, 4, 2), nn.Linear(5, 2), nn.Linear(2, 2)]
    modules[0].to(memory_format=torch.channels_last)
    for p in [*modules[0].parameters(), *modules[1].parameters()]:  # the last module has no gradients
        p.grad = torch.randn_like(p)
    own = [p.grad.clone() for module in modules[:2] for p in module.parameters()]
    with CountCollectives() as counted:
        classifier._average_gradients(modules)
    assert all(p.grad is None for p in modules[2].parameters())
    return own, [p.grad for module in modules[:2] for p in module.parameters()], len(counted.calls)


def test_gradients_are_averaged_over_ranks_in_one_collective(ranks):
    (own_0, averaged_0, calls), (own_1, averaged_1, _) = ranks(2).run(_averaged)
    assert calls == 1
    for a, b, first, second in zip(own_0, own_1, averaged_0, averaged_1, strict=True):
        assert torch.equal(first, (a + b) / 2)
        assert torch.equal(second, first)
