"""Weights & Biases."""

import pytest

from tests.helpers.commands import start, words

pytestmark = pytest.mark.usefixtures("no_embedding")


def test_wandb_offline_gets_numbers_and_pictures(tmp_path, few, monkeypatch):
    """The dashboard gets the numbers and the pictures, without a network and without leaving the run folder."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--wandb", "--offline", "--run_id", "r", "--name", "mine"]
    process = start(["main_contrastive.py", *argv, "--project", "p"])
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    (offline,) = (tmp_path / "r" / "wandb").glob("offline-run-*-r")
    logged = {p.name.split("_")[0] for p in (offline / "files" / "media" / "images").glob("*.png")}
    assert logged == {"curves", "neighbours", "embedding"}
    assert b"val_probe_acc" in next(offline.glob("*.wandb")).read_bytes()
