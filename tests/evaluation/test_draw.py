"""Tests of the pictures evaluation."""

import dataclasses

import pytest
import timm

from data.images import ArrayImages
from data.pipelines.choose import build_pipeline
from data.views import ViewSpec
from evaluation.draw import PictureSettings, draw_pictures
from evaluation.target import EvaluationTarget, NetworkInfo
from tests.helpers.evaluation import CPU, Pixels, target_of
from tests.helpers.images import read, write_image


@pytest.mark.usefixtures("no_embedding")
def test_draw_pictures_draws_the_confusion_matrix_where_there_are_labels(tmp_path):
    target = target_of(Pixels(), tmp_path, title="b, x", images=100)
    assert draw_pictures(target, PictureSettings("pca", 20)) == []
    assert {p.name for p in tmp_path.glob("*.png")} == {"b_x_neighbours.png", "b_x_confusion.png"}
    (tmp_path / "b_x_confusion.png").unlink()
    draw_pictures(target, PictureSettings("pca", 0))
    assert not (tmp_path / "b_x_confusion.png").exists()


@pytest.mark.usefixtures("no_embedding")
def test_draw_pictures_draws_the_attention_of_a_class_token(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.pictures.neighbours", lambda *args: None)
    for title, options in (("token", {}), ("average", {"global_pool": "avg"})):
        network = timm.create_model("test_vit", num_classes=0, img_size=32, depth=1, **options)
        draw_pictures(target_of(network, tmp_path, title=title, images=20), PictureSettings("pca", 0))
        assert network.training, "its mode is that of before"
    assert {p.name for p in tmp_path.glob("*.png")} == {"token_attention.png"}


def photos(folder, count):
    """A target of unlabelled images without a validation split."""
    for i in range(count):
        write_image(folder / "photos" / f"{i}.png", size=(40, 36), seed=i)
    module = build_pipeline("stream", read(str(folder / "photos")), [ViewSpec(32)], 1, 0, 0, None, "cpu")
    return EvaluationTarget(Pixels(), NetworkInfo("b, x", "b"), "custom", module, module, CPU, folder)


@pytest.mark.parametrize("projection", ["pca", "tsne", "umap"])
def test_draw_pictures_leaves_out_what_one_image_is_too_few_for(tmp_path, capsys, projection):
    assert draw_pictures(photos(tmp_path, 1), PictureSettings(projection, 0)) == []
    fewest = 4 if projection == "umap" else 2
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "  note: neighbours of b, x left out: 1 image is too few, 2 are needed",
        f"  note: embedding of b, x left out: 1 image is too few, {fewest} are needed",
    ]
    assert not list(tmp_path.glob("b_x*"))


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_draw_pictures_draws_two_images(tmp_path, capsys, projection):
    draw_pictures(photos(tmp_path, 2), PictureSettings(projection, 0))
    assert "note" not in capsys.readouterr().out
    assert {p.name for p in tmp_path.glob("*.png")} == {"b_x_neighbours.png", "b_x_embedding.png"}


def test_one_validation_image_has_neighbours_and_no_embedding(tmp_path, capsys):
    target = target_of(Pixels(), tmp_path, title="b, x", images=20)
    data = target.data.data
    few = dataclasses.replace(data, val=ArrayImages(data.val.pixels[:1], data.val.labels[:1]))
    target.data = build_pipeline("memory", few, [ViewSpec(32)], 20, 0, 0, None, "cpu")
    draw_pictures(target, PictureSettings("pca", 0))
    assert capsys.readouterr().out == "  note: embedding of b, x left out: 1 image is too few, 2 are needed\n"
    assert {p.name for p in tmp_path.glob("*.png")} == {"b_x_neighbours.png"}
