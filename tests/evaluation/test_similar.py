"""The search for similar images among the training images."""

import csv
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from matplotlib import image as mpimg
from torch.nn import functional as F

from data.pipelines.choose import build_pipeline
from data.views import ViewSpec
from evaluation import similar as module_under_test
from evaluation.settings import TrainingLabels
from evaluation.similar import SimilarSettings, similar, similar_settings
from evaluation.target import EvaluationTarget, NetworkInfo
from tests.helpers.evaluation import CPU, Pixels
from tests.helpers.images import read, write_image
from utils.errors import UserError


@pytest.fixture
def target(tmp_path):
    for i in range(5):
        write_image(tmp_path / "photos" / f"{i}.png", size=(40, 36), seed=i)
    return target_of_photos(tmp_path)


def target_of_photos(tmp_path):
    """A target whose data module has decoded no image yet."""
    module = build_pipeline("stream", read(str(tmp_path / "photos")), [ViewSpec(32)], 2, 0, 0, None, "cpu")
    info = NetworkInfo("b, x", "b", default_output_dir=tmp_path / "run")
    return EvaluationTarget(Pixels(), info, "custom", module, module, CPU, tmp_path)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_similar_writes_the_nearest_paths_and_a_picture(tmp_path, target, capsys):
    queries = [write_image(tmp_path / "asked" / "copy of 3.png", size=(40, 36), seed=3),
               write_image(tmp_path / "asked" / "new.jpg", size=(50, 40), seed=70)]  # fmt: skip
    assert similar(target, SimilarSettings(tuple(queries), 3)) == []
    rows = rows_of(tmp_path / "b_x_similar.csv")
    assert [(row["query"], row["rank"]) for row in rows[:3]] == [("copy of 3.png", str(i)) for i in (1, 2, 3)]
    assert (rows[0]["path"], rows[0]["cosine"]) == ("3.png", "1.0000")
    views = target.data.views_of_files(queries, CPU)
    cosine = F.normalize(Pixels()(views), dim=1) @ F.normalize(target.train.x, dim=1).T
    expected = [f"{i}.png" for i in cosine[1].argsort(descending=True)[:3].tolist()]
    assert [row["path"] for row in rows[3:]] == expected
    assert mpimg.imread(tmp_path / "b_x_similar.png")[..., :3].std() > 0.03
    assert str(tmp_path) not in (tmp_path / "b_x_similar.csv").read_text(), "no folder of this machine"
    assert "copy of 3.png: 3.png (1.00)" in capsys.readouterr().out


def test_similar_uses_the_features_that_are_on_the_disk(tmp_path, target, monkeypatch):
    query = write_image(tmp_path / "q.png", size=(40, 36), seed=2)
    similar(target, SimilarSettings((query,), 1))
    first = (tmp_path / "b_x_similar.csv").read_text()

    def fail(*args):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr("data.pipelines.evaluation_views.evaluation_view", fail)
    monkeypatch.setattr(module_under_test, "_draw", lambda *args: None)
    (tmp_path / "b_x_similar.csv").unlink()
    similar(target_of_photos(tmp_path), SimilarSettings((query,), 1))
    assert (tmp_path / "b_x_similar.csv").read_text() == first
    shutil.rmtree(tmp_path / "run" / "features")
    with pytest.raises(AssertionError, match="an image was decoded again"):
        similar(target_of_photos(tmp_path), SimilarSettings((query,), 1))


def test_views_of_files_are_those_of_the_data_set(target):
    paths = [target.data.data.train.path(i) for i in range(5)]
    (batches) = [batch.views[0] for batch in target.data.eval_dataloader("train", CPU)]
    np.testing.assert_array_equal(target.data.views_of_files(paths, CPU), torch.cat(batches))


@pytest.mark.parametrize(("name", "message"), [("none.jpg", "it does not exist"), (".", "it is a folder")])
def test_queries_that_are_no_files_are_refused(name, message):
    flags = Namespace(similar=[name], similar_k=8, features_dir=None, features_dtype="float32")
    with pytest.raises(UserError, match=f"--similar {name}: {message}; name image files"):
        similar_settings(flags, TrainingLabels(5, 0, 0, 0), print)


def test_no_more_neighbours_than_images(tmp_path):
    query = write_image(tmp_path / "q.png")
    flags = Namespace(similar=[str(query)], similar_k=8, features_dir=None, features_dtype="float32")
    assert similar_settings(flags, TrainingLabels(5, 0, 0, 0), print).k == 5


def test_a_query_that_is_no_image_is_named_before_features_are_computed(tmp_path, target, monkeypatch):
    monkeypatch.setattr("evaluation.similar.load_or_extract", lambda *_: 1 / 0)
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(UserError, match=r"--similar: .*text.jpg is not a readable image \(.*\); name image files$"):
        similar(target, SimilarSettings((tmp_path / "text.jpg",), 1))
