"""Tests of the pictures evaluation."""

import pytest
import timm

from evaluation.draw import PictureSettings, draw_pictures
from tests.helpers.evaluation import Pixels, target_of


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
