"""Model cards as Markdown, and commands without paths of the machine."""

import pytest

from backbones.model_card import model_card, portable_command, scores_of

CARD = {
    "backbone": "resnet18", "stem": "imagenet", "method": "simclr", "dataset": "digits", "images": "1438",
    "large_size": "32", "epochs": "20", "steps": "220", "seconds": "165.2", "seed": "None", "commit": "unknown",
    "mean": "(0.1, 0.2, 0.3)", "std": "(0.4, 0.5, 0.6)", "size": "32", "command": "digits resnet18 --method simclr",
    "load": "import torch", "note": "A remark.", "score: knn_20": "97.5", "score: fewshot_5/mean": "80.1",
}  # fmt: skip


def test_model_card_has_every_known_fact():
    text = model_card(CARD)
    assert {
        "# resnet18", "- method: simclr", "- data set: digits", "- training images: 1438", "- stem: imagenet",
        "- epochs: 20", "- steps: 220", "- seconds of training: 165.2", "digits resnet18 --method simclr",
        "import torch", "A remark.",
    } <= set(text.splitlines())  # fmt: skip
    assert "(N, 3, 32, 32)" in text
    assert "minus mean (0.1, 0.2, 0.3), divided by std (0.4, 0.5, 0.6)" in text


def test_model_card_lists_scores_under_their_keys():
    lines = model_card(CARD).splitlines()
    start = lines.index("## Results")
    assert lines[start + 2 : start + 4] == ["- knn_20: 97.5", "- fewshot_5/mean: 80.1"]


def test_model_card_leaves_out_unknown_facts():
    text = model_card(CARD)
    assert "- seed" not in text, "None"
    assert "- commit" not in text, "unknown"


def test_model_card_has_no_empty_section():
    text = model_card({"backbone": "resnet18", "mean": "(0.5, 0.5, 0.5)", "load": ""})
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# resnet18", "## Inputs"]
    assert "mean" not in text, "a mean is of no use without the deviation"


def test_model_card_of_foreign_weights_does_not_claim_their_pretraining():
    assert "pretrained with Lookalike" in model_card(CARD)
    text = model_card({"backbone": "resnet18"})
    assert "pretrained" not in text
    assert "exported with Lookalike" in text


def test_scores_of_keeps_keys_and_adds_the_label():
    assert scores_of({"knn_20": 97.512, "loss": 0.000123456}) == {"score: knn_20": "97.51", "score: loss": "0.0001235"}
    assert scores_of({"knn_20": 97.5}, "online") == {"score: knn_20 (online)": "97.5"}


@pytest.mark.parametrize("flag", ["--data_folder", "--output", "--cache", "--pretrained_feature_extractor",
                                  "--train_dir", "--val_dir"])  # fmt: skip
@pytest.mark.parametrize("joined", [False, True])
def test_portable_command_holds_no_absolute_path(flag, joined):
    def words(path):
        return [f"{flag}={path}"] if joined else [flag, path]

    assert portable_command(["custom", *words("/home/me/photos/"), "--epochs", "3"]).split() == [
        "custom", *words("photos"), "--epochs", "3",
    ]  # fmt: skip
    assert portable_command(words("~me/photos")).split() == words("photos")
    assert portable_command(words("/")).split() == words("PATH")
    assert portable_command(words("photos/train")).split() == words("photos/train")


def test_portable_command_is_quoted_for_a_shell():
    assert portable_command(["custom", "--data_folder", "/home/me/my photos"]) == "custom --data_folder 'my photos'"
