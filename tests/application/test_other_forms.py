"""Whole runs on a table, shards, a saved data set and an array: resumed exactly, and equal to the run on folders."""

import numpy as np
import pytest

import main_contrastive
import main_linear
from data.datasets import read_dataset
from tests.helpers.commands import TINY, words
from tests.helpers.forms import data_set, write_shards
from tests.helpers.images import class_folders
from tests.helpers.runs import assert_same_run, checkpoint, equal, interrupt_at
from utils.errors import Interrupted

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_embedding")]


def as_table(folders, to):
    images = read_dataset("custom", str(folders), None, None).train
    to.mkdir()
    rows = [f"{images.path(i)},{label}" for i, label in enumerate(images.labels.tolist())]
    (to / "train.csv").write_text("\n".join(["path,label", *rows]))
    return to / "train.csv"


def as_data_set(folders, to):
    data_set(folders, [f"c{i}" for i in range(3)]).save_to_disk(to)
    return to


def as_array(folders, to):
    images = read_dataset("custom", str(folders), None, None).train
    to.mkdir()
    np.save(to / "x.npy", np.stack([images.decode(i).permute(1, 2, 0).numpy() for i in range(len(images))]))
    np.save(to / "x_labels.npy", images.labels.numpy())
    return to / "x.npy"


@pytest.mark.parametrize("form", [as_table, write_shards, as_data_set, as_array])
def test_a_run_is_resumed_and_is_the_run_on_folders(tmp_path, monkeypatch, form):
    folders = class_folders(tmp_path / "folders", classes=3, each=20)
    place = form(folders, tmp_path / "other")
    few = ["--large_size", "16", "--batch_size", "12", "--knn_k", "5"]

    def argv(data_folder, run):
        shared = words("nnclr", tmp_path, *few, "--pipeline", "stream", "--data_folder", str(data_folder))[1:]
        return ["custom", *shared, "--run_id", run]

    main_contrastive.main(argv(folders, "plain"))
    main_contrastive.main(argv(place, "whole"))
    with monkeypatch.context() as m:
        interrupt_at(m, 8)
        with pytest.raises(Interrupted):
            main_contrastive.main(argv(place, "stopped"))
    main_contrastive.main(["--resume", str(tmp_path / "stopped")])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert equal(checkpoint(tmp_path / "whole")["state_dict"], checkpoint(tmp_path / "plain")["state_dict"])
    main_linear.main(["custom", TINY[1], "--data_folder", str(place), "--pretrained_feature_extractor",
                      str(tmp_path / "stopped"), "--evaluation", "quality", "--output", str(tmp_path)])  # fmt: skip
