"""Tests of scores: keys, deviations, chosen hyperparameters."""

import json

import pytest

from utils.scores import ResultRow, Score, all_numbers, definition, slug

ROW = ResultRow(
    "resnet18, nnclr on imagenet100",
    "resnet18",
    "nnclr",
    "imagenet100",
    [
        Score("knn_20", 61.5),
        Score("logistic", 70.0, chosen={"penalty_c": 0.1}, chosen_on="a held-out fifth"),
        Score("fewshot_5", 50.0, deviation=2.5, labelled_images=50),
    ],
)


def test_numbers_are_keyed_and_hold_no_chosen_hyperparameter():
    assert ROW.numbers() == {"knn_20": 61.5, "logistic": 70.0, "fewshot_5/mean": 50.0, "fewshot_5/std": 2.5}


def test_as_json_has_the_chosen_hyperparameters_beside_the_scores():
    entry = json.loads(json.dumps(ROW.as_json()))
    assert entry["chosen"] == {"logistic": {"penalty_c": 0.1, "chosen_on": "a held-out fifth"}}
    assert entry["scores"] == ROW.numbers()
    assert (entry["method"], entry["pretrained_on"], entry["backbone"]) == ("nnclr", "imagenet100", "resnet18")


def test_all_numbers_are_keyed_by_row():
    assert all_numbers([ROW])["resnet18_nnclr_on_imagenet100/fewshot_5/std"] == 2.5
    assert len(all_numbers([ROW])) == 4


def test_slug_is_a_file_name():
    assert slug("vit_small/16, a run") == "vit_small_16_a_run"
    assert slug("raw pixels") == "raw_pixels"


def test_every_score_of_a_run_and_of_an_evaluation_has_a_definition():
    keys = ["knn_20", "logistic", "logistic_1pct", "linear_sgd_0.5pct", "finetune", "finetune_10pct", "fewshot_5/mean",
            "fewshot_5/std", "quality/rankme", "cluster/nmi", "loss", "val_probe_acc", "images_per_second"]  # fmt: skip
    assert all(definition(key) for key in keys)
    assert "the 20 nearest" in definition("knn_20")
    assert "0.5 % of the training images" in definition("linear_sgd_0.5pct")
    with pytest.raises(KeyError, match="another has no definition"):
        definition("another")
