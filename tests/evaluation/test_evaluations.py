"""Tests of the registry of evaluations: every evaluation computes its scores and changes nothing in the network."""

from argparse import ArgumentParser, Namespace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from evaluation.evaluations import EVALUATIONS, evaluate, resolve_settings
from evaluation.settings import TrainingLabels
from evaluation.table import table
from evaluation.target import RawPixels
from tests.helpers.commands import ROOT
from tests.helpers.evaluation import Pixels, target_of
from tests.helpers.images import read
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_embedding")
LABELS = torch.tensor([0] * 30 + [1] * 6 + [-1] * 9)


def flags_of(folder, *argv):
    """The flags of all evaluations, with quick settings."""
    parser = ArgumentParser()
    for add_flags in {f: None for evaluation in EVALUATIONS.values() for f in evaluation.flags}:
        add_flags(parser)
    quick = ["--knn_k", "5", "--shots", "1", "4", "--draws", "2", "--lr", "0.1", "1", "--epochs", "1",
             "--num_clusters", "4", "--cluster_output", str(folder / "c.npz"), "--cluster_iterations", "2",
             "--features_dir", str(folder), "--similar", str(ROOT / "docs" / "images" / "neighbours.png")]  # fmt: skip
    return parser.parse_args([*quick, *argv], Namespace(named=list(EVALUATIONS)))


def settings_of(folder, names=tuple(EVALUATIONS), data=None, argv=()):
    return resolve_settings(names, flags_of(folder, *argv), "digits", data or read(), print)


def test_evaluate_fills_the_columns_of_every_evaluation(tmp_path):
    networks = {"raw pixels": RawPixels(), "pixels": Pixels()}
    names = [name for name in EVALUATIONS if name not in ("cluster", "similar")]
    rows = [evaluate(target_of(network, tmp_path, title, images=200), settings_of(tmp_path, names))
            for title, network in networks.items()]  # fmt: skip
    raw, pixels = (row.numbers() for row in rows)
    assert {"knn_5", "logistic", "fewshot_1/mean", "fewshot_4/std", "quality/rankme", "quality/alignment", "linear_sgd",
            "finetune"} <= set(pixels)  # fmt: skip
    assert "linear_sgd" not in raw, "raw pixels have no backbone"
    assert set(rows[1].as_json()["chosen"]) == {"logistic", "linear_sgd", "finetune"}
    text = table(rows)
    assert len({len(line) for line in text.splitlines()}) == 1
    assert f"{raw['knn_5']:.1f}" in text
    assert f"{raw['quality/uniformity']:.3f}" in text


def test_evaluate_changes_nothing_in_the_network(tmp_path):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    evaluate(target_of(network, tmp_path, images=200), settings_of(tmp_path))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


def fake_data(train, val):
    splits = {
        split: SimpleNamespace(labels=labels)
        for split, labels in (("train", train), ("val", val))
        if labels is not None
    }
    sets = {split: images.labels if images.labels.ndim == 2 else None for split, images in splits.items()}
    return SimpleNamespace(
        train=splits["train"], val=splits.get("val"), splits=lambda: splits, label_sets=sets.__getitem__
    )


@pytest.mark.parametrize(
    ("name", "train", "val", "message"),
    [
        ("knn", LABELS, None, "--evaluation knn needs labels and validation images, digits has no validation images"),
        ("fewshot", LABELS.new_full((9,), -1), LABELS, "--evaluation fewshot needs labels .* digits has no labels"),
        ("logistic", LABELS, LABELS.new_full((9,), -1), "name --train_dir .*, or ask for quality, pictures, features"),
    ],
)
def test_resolve_settings_refuses_evaluations_that_lack_labels(tmp_path, name, train, val, message):
    with pytest.raises(UserError, match=message):
        settings_of(tmp_path, [name], fake_data(train, val))


SETS = torch.tensor([[True, True, False], [False, True, False], [False] * 3] * 5)


@pytest.mark.parametrize(
    ("name", "argv", "val", "message"),
    [
        (
            "fewshot",
            (),
            SETS,
            "--evaluation fewshot needs one label per image, digits has several .* ask for knn, logistic",
        ),
        ("finetune", (), SETS, "--evaluation finetune needs one label"),
        ("logistic", ("--label_fraction", "0.5"), SETS, "--label_fraction 0.5 draws images of each class"),
        ("knn", ("--knn_k", "11"), SETS, "--knn_k 11 exceeds the 10 labelled training images"),
        ("knn", (), None, "digits has no validation images"),
        ("knn", (), SETS[2:3], "digits has no labels"),
    ],
)
def test_resolve_settings_refuses_what_several_labels_do_not_allow(tmp_path, name, argv, val, message):
    with pytest.raises(UserError, match=message):
        settings_of(tmp_path, [name], fake_data(SETS, val), argv)
    assert settings_of(tmp_path, ["logistic", "knn", "quality"], fake_data(SETS, SETS))["knn"].k == (5,)


def test_evaluations_that_nobody_typed_are_left_out_where_images_have_several_labels(tmp_path, capsys):
    flags = flags_of(tmp_path)
    flags.named = ["logistic"]
    found = resolve_settings(["linear", "knn", "logistic", "quality"], flags, "digits", fake_data(SETS, SETS), print)
    assert list(found) == ["knn", "logistic", "quality"]
    assert capsys.readouterr().out == "  note: linear left out: images of digits have several labels here\n"
    assert "linear" in resolve_settings(["linear"], flags, "digits", fake_data(LABELS, LABELS), print)


def test_resolve_settings_needs_no_labels_where_none_are_used(tmp_path):
    names = [name for name, evaluation in EVALUATIONS.items() if not evaluation.needs_labels]
    assert set(settings_of(tmp_path, names, fake_data(LABELS.new_full((9,), -1), None))) == set(names)


def test_resolve_settings_refuses_a_fraction_below_one_label_per_class(tmp_path):
    with pytest.raises(UserError, match="--label_fraction 0.05 of 36 labels is less than one for each of 2 classes"):
        settings_of(tmp_path, ["linear"], fake_data(LABELS, LABELS), ["--label_fraction", "0.05"])


class Recorder(Namespace):
    """Remembers which flags are read."""

    def __init__(self, flags):
        super().__init__(**vars(flags))
        self.read = set()

    def __getattribute__(self, name):
        if name in (values := super().__getattribute__("__dict__")) and "read" in values:
            values["read"].add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_settings_read_every_registered_flag(tmp_path, name):
    """A flag that the settings do not read would be accepted and ignored."""
    parser = ArgumentParser(add_help=False)
    for add_flags in EVALUATIONS[name].flags:
        add_flags(parser)
    flags = Recorder(flags_of(tmp_path))
    EVALUATIONS[name].settings(flags, TrainingLabels(1438, 1438, 10, 100), print)
    assert {action.dest for action in parser._actions} <= flags.read
