"""Captions of pictures."""

import numpy as np
from PIL import Image

from evaluation.captions import add_captions


def test_add_captions_writes_above_the_picture_and_widens_a_narrow_one(tmp_path):
    path = tmp_path / "p.png"
    Image.new("RGB", (30, 20), "red").save(path)
    add_captions([path, tmp_path / "missing.png"], "nnclr, seed 3, a1b2c3d4")
    pixels = np.asarray(Image.open(path))
    height, width, _ = pixels.shape
    assert height == 50
    assert width > 150
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert red.sum() == 600
    assert red[30:].sum() == 600
    assert (pixels[:30].min(axis=(0, 2)) < 150).sum() > 30, "letters stand above"
    assert not (tmp_path / "missing.png").exists()
