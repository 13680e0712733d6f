"""Mistakes of a user end with one line, before training, and leave nothing behind."""

import re

import pytest

from methods import METHODS
from tests.helpers.commands import TINY, words
from tests.helpers.images import class_folders, unlabelled_folder
from tests.helpers.runs import refused

pytestmark = pytest.mark.usefixtures("no_embedding")


def test_mistakes_are_refused_before_training_and_leave_no_folder(tmp_path):
    out = tmp_path / "runs"
    base = [*TINY, "--output", str(out)]
    assert "unknown backbone 'resnet1'" in refused(["digits", "resnet1", "--output", str(out)])
    assert "fewer than one global batch" in refused([*base, "--batch_size", "5000"])
    assert "needs labels" in refused(["custom", TINY[1], "--data_folder", unlabelled_folder(tmp_path),
                    "--supervised", "--batch_size", "4", "--output", str(out), "--large_size", "16",
                    "--precision", "32"])  # fmt: skip
    for method in ("barlow_twins", "rotnet"):
        assert "--small_views 2: " in refused([*base, "--method", method, "--small_views", "2"])
    assert "smaller than the global batch" in refused([*base, "--method", "nnclr", "--queue_size", "100"])
    assert "is not a folder" in refused(
        ["imagenet", TINY[1], "--data_folder", str(tmp_path / "gone"), "--output", str(out)]
    )
    class_folders(tmp_path / "train")
    (tmp_path / "train" / "c0" / "0.png").write_bytes(b"broken")
    for pipeline in ("memory", "stream", "torchvision"):
        message = refused(["custom", TINY[1], "--data_folder", str(tmp_path), "--output", str(out), "--batch_size", "4",
                        "--large_size", "32", "--pipeline", pipeline])  # fmt: skip
        assert "0.png" in message
    assert "no last.ckpt" in refused(["--resume", str(tmp_path)])
    assert not out.exists()


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].transformer_name])
def test_method_for_transformers_says_so_of_another_backbone_and_names_no_flag(tmp_path, method):
    message = refused([*TINY, "--output", str(tmp_path / "runs"), "--method", method])
    assert re.search(r"^(MAE|ibot|I-JEPA) works on the tokens of a vision transformer, and the backbone is a ", message)
    assert "--" not in message
    assert not (tmp_path / "runs").exists()


def test_non_finite_loss_stops_the_run_with_advice(tmp_path):
    argv = words("simclr", tmp_path, "--lr", "1e30", "--run_id", "r")
    assert re.search(r"is not finite at step \d+; try a lower --lr", refused(argv))
