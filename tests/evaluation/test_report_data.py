"""Data of the pictures for a run's report: what the JSON files hold, and which image stands where in a sheet."""

import base64
import io
import json

import numpy as np
import torch
from PIL import Image

from evaluation import pictures
from evaluation.features import FeatureSet
from evaluation.report_data import VIEWED, Cell, Grid, first_images, sheet, views_grid, write_grid
from tests.helpers.evaluation import CPU, digits_module
from tests.helpers.images import read


def opened(data):
    """(rows, columns, side, side, 3): the squares of a sheet."""
    raw = base64.b64decode(data["sheet"].removeprefix("data:image/webp;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    side = data["side"]
    return pixels.reshape(data["lines"], side, data["columns"], side, 3).swapaxes(1, 2)


def plain(value, height=16, width=16):
    return np.full((height, width, 3), value, np.uint8)


def test_sheet_holds_the_images_in_their_order():
    data = sheet([plain(v) for v in (0, 60, 120, 180, 240)], side=16)
    squares = opened(data)
    assert squares.shape == (2, 3, 16, 16, 3)
    means = squares.mean(axis=(2, 3, 4)).flatten()
    np.testing.assert_allclose(means[:5], [0, 60, 120, 180, 240], atol=4)


def test_sheet_cuts_the_central_square_and_makes_no_image_larger():
    wide = np.concatenate([plain(0, 40, 20), plain(200, 40, 40), plain(0, 40, 20)], axis=1)
    data = sheet([wide, plain(200, 10, 10)], side=96)
    assert data["side"] == 40
    np.testing.assert_allclose(opened(data).mean(axis=(2, 3, 4)), 200, atol=4)
    assert sheet([wide], side=16)["side"] == 16


def test_grid_has_a_name_and_a_class_for_each_image(tmp_path):
    rows = [[Cell(plain(0), "a.png", "cat"), Cell(plain(9), "b.png", "dog", False)]]
    write_grid(tmp_path / "g.json", Grid(rows, ["cat"], {1: "nearest"}, "a note"))
    data = json.loads((tmp_path / "g.json").read_text())
    assert data["rows"][0][1] == {"name": "b.png", "label": "dog", "matches": False}
    assert (data["kind"], data["labels"], data["titles"], data["note"]) == ("grid", ["cat"], {"1": "nearest"}, "a note")


def test_neighbours_are_those_of_the_picture(tmp_path, monkeypatch):
    """The names, classes and images of the JSON file are those of the rows that are drawn."""
    drawn, data = [], read()
    monkeypatch.setattr(pictures, "neighbour_grid", lambda *args: drawn.append(args))
    x = torch.randn(len(data.train), 4, generator=torch.Generator().manual_seed(0))
    bank, queries = FeatureSet(x, data.train.labels), FeatureSet(x[:50] + 0.01, data.val.labels[:50])
    pictures.neighbours(tmp_path / "n.png", bank, queries, data, seed=0)
    ((_, shown, found, correct, labels, _),) = drawn
    content = json.loads((tmp_path / "n.json").read_text())
    assert [row[0]["label"] for row in content["rows"]] == labels == content["labels"]
    assert [[c["matches"] for c in row[1:]] for row in content["rows"]] == correct.tolist()
    for row, query, near in zip(content["rows"], shown, found, strict=True):
        rows = [int(c["name"].removeprefix("image ")) for c in row]
        assert np.array_equal(data.val.decode(rows[0]).permute(1, 2, 0), query)
        assert all(
            np.array_equal(data.train.decode(i).permute(1, 2, 0), n) for i, n in zip(rows[1:], near, strict=True)
        )
        assert [c["label"] for c in row[1:]] == [str(int(data.train.labels[i])) for i in rows[1:]]


def test_points_have_the_names_and_classes_of_their_images(tmp_path):
    data = read()
    labels = data.val.labels[:40]
    x = torch.cat([labels[:, None].float(), torch.arange(40)[:, None] / 100], dim=1)
    pictures.embedding(tmp_path / "e.png", FeatureSet(x, labels), [], 0, "pca", data.val)
    content = json.loads((tmp_path / "e.json").read_text())
    assert sorted(content["name"]) == sorted(f"image {i}" for i in range(40))
    rows = [int(name.removeprefix("image ")) for name in content["name"]]
    assert content["label"] == labels[rows].tolist()
    expected = np.stack([data.val.decode(i).permute(1, 2, 0).numpy() for i in rows]).reshape(40, -1).astype(float)
    squares = opened(content).reshape(-1, expected.shape[1])[:40]
    nearest = [int(abs(expected - square).mean(axis=1).argmin()) for square in squares]
    assert nearest == list(range(40)), "each image stands at its number"
    assert all(0 <= v <= 1 for v in content["x"] + content["y"])


def test_views_are_those_of_the_batch(tmp_path):
    module = digits_module(batch_size=20, images=40)
    (batch, *_) = module.augmented_loader(range(20), CPU)
    kept = first_images(batch)
    batch.views[0].zero_()
    grid = views_grid(kept, module.data, step=3)
    assert len(grid.rows) == VIEWED
    assert [len(row) for row in grid.rows] == [3] * VIEWED
    assert np.array_equal(grid.rows[2][0].pixels, module.data.train.decode(2).permute(1, 2, 0))
    (again, *_) = module.augmented_loader(range(20), CPU)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.data.mean, module.data.std))
    for v in (0, 1):
        expected = (255 * (again.views[v][2] * std + mean)).clamp(0, 255).permute(1, 2, 0)
        assert abs(grid.rows[2][v + 1].pixels - expected.numpy()).max() <= 0.51
    assert "step 3" in grid.note
