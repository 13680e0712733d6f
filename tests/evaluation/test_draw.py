"""Tests of the pictures evaluation."""

import pytest

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
