"""Tests of pictures: files that are not blank, projections, queries."""

import importlib
import sys

import matplotlib
import numpy as np
import pytest
import timm
import torch
from matplotlib import image as mpimg
from matplotlib.offsetbox import AnnotationBbox

from evaluation import pictures
from evaluation.features import FeatureSet
from tests.helpers.evaluation import CPU, blobs, digits_module
from tests.helpers.images import read, write_image
from utils.errors import UserError
from utils.vision_transformer import class_token_attention

LABELS = torch.full((6,), -1)


def assert_drawn(path):
    image = mpimg.imread(path)
    assert image[..., :3].std() > 0.03, f"{path} is blank"


def test_every_picture_is_drawn(tmp_path):
    pictures.curves(tmp_path / "c.png", {"loss": [(0, 2.0), (5, 1.0)], "knn_20": [(5, 80.0)]})
    pictures.curves(tmp_path / "only loss.png", {"loss": [(0, 2.0), (5, 1.0)]})
    pictures.embedding(tmp_path / "e.png", blobs(), [], seed=0)
    pictures.embedding(tmp_path / "pca.png", blobs(), [], seed=0, projection="pca")
    pictures.embedding(tmp_path / "no labels.png", FeatureSet(blobs().x, torch.full((60,), -1)), [], seed=0)
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    right = np.array([[True, False], [False, True]])
    pictures.neighbour_grid(tmp_path / "n.png", [image, image], [[image, image]] * 2, right, ["cat", "dog"])
    pictures.neighbour_grid(tmp_path / "n2.png", [image], [[image, image]], None, [])
    pictures.confusion(tmp_path / "m.png", blobs().y, blobs().y.roll(1), ["a", "b", "c"])
    pictures.confusion(tmp_path / "m100.png", torch.arange(100), torch.arange(100), [])
    maps = torch.rand(2, 3, 4, 4)
    pictures.attention_maps(tmp_path / "a.png", torch.rand(2, 3, 32, 32), maps, ["cat", "dog"])
    for path in tmp_path.glob("*.png"):
        assert_drawn(path)


def test_pca_projects_on_the_largest_singular_values():
    x = blobs().x.double() * torch.tensor([1, 5, 0.1, 3, 0.2])
    u, s, _ = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    np.testing.assert_allclose(abs(pictures._pca(x.numpy(), 0)), (u * s)[:, :2].abs(), atol=1e-8)


@pytest.mark.slow  # compiles numba functions
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*n_jobs.*", "ignore:.*force_all_finite.*")
def test_umap_keeps_distant_points_apart(tmp_path, monkeypatch):
    pytest.importorskip("umap", reason="umap-learn is in requirements-umap.txt")
    y = torch.arange(60) % 2
    flat = torch.tensor(pictures.PROJECTIONS["umap"][1]((torch.randn(60, 4) + 20 * y[:, None]).numpy(), 0))
    apart = torch.cdist(flat, flat)
    assert apart[y == 0][:, y == 1].min() > apart[y == 0][:, y == 0].median()
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="--embedding umap needs umap-learn .* pip install -r requirements-umap.txt"):
        pictures.embedding(tmp_path / "u.png", blobs(), [], seed=0, projection="umap")


def test_nearest_rows_spreads_the_queries_over_the_classes():
    bank, queries = blobs(90), blobs(90, seed=1)
    chosen, rows = pictures.nearest_rows(bank, queries, k=4, count=6, seed=0)
    assert torch.bincount(queries.y[chosen]).tolist() == [2, 2, 2]
    assert rows.shape == (6, 4)


def test_pictures_choose_no_matplotlib_backend(monkeypatch):
    """The whole room is imported once more."""
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluation" or name == "matplotlib.pyplot"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    assert importlib.import_module("evaluation.pictures") is not pictures
    assert "matplotlib.pyplot" not in sys.modules


def test_attention_shows_the_views_and_the_attention_that_the_network_has_for_them(tmp_path, monkeypatch):
    """Six validation images of six digits, as the network sees them, and its own maps for them."""
    network, module = timm.create_model("test_vit", num_classes=0, img_size=32, depth=1).eval(), digits_module()
    seen = []
    monkeypatch.setattr(pictures, "attention_maps", lambda *args: seen.append(args))
    pictures.attention(tmp_path / "a.png", network, module, CPU, seed=0)
    ((_, shown, maps, names),) = seen
    assert len({*names}) == len(names) == 6
    assert 0 <= shown.min() < shown.max() <= 1
    (views,) = (batch.views[0] for batch in digits_module(batch_size=400).eval_dataloader("val", CPU))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (module.data.mean, module.data.std))
    rows = [int((views * std + mean - image).flatten(1).norm(dim=1).argmin()) for image in shown]
    torch.testing.assert_close(views[rows] * std + mean, shown)
    assert [str(int(module.data.val.labels[i])) for i in rows] == names
    torch.testing.assert_close(maps, class_token_attention(network, views[rows]))


def test_attention_maps_are_bright_where_the_attention_is(tmp_path, monkeypatch):
    grids = []
    monkeypatch.setattr(pictures, "_grid", lambda *args: grids.append(args))
    attention = torch.zeros(1, 14, 4, 4)
    attention[0, 0, 1, 2] = 0.5
    pictures.attention_maps(tmp_path / "a.png", torch.zeros(1, 3, 32, 32), attention, [])
    ((_, ((image, mean, *heads),), _, _, titles, note),) = grids
    assert not image.any()
    assert len(heads) == pictures.HEADS
    assert "12 of 14 heads" in note
    assert titles[2] == "head 1"
    assert np.argwhere(heads[0].sum(axis=2) > 400).tolist() == [[1, 2]]
    assert heads[1].sum(axis=2).max() < 20, "a head without attention to any patch is black"
    bright = np.argwhere(mean.sum(axis=2) > 200)
    assert (bright.min(axis=0).tolist(), bright.max(axis=0).tolist()) == ([8, 16], [15, 23])


def photographs(folder):
    for i in range(6):
        write_image(folder / f"IMG_{i}.png", seed=i)
    return read(str(folder))


def test_embedding_shows_images_at_their_points_with_their_file_names(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: saved.append(figure))
    features = FeatureSet(torch.tensor([[1.0, 0], [1, 0.001], [0, 1], [-1, 0], [0, -1], [0.7, 0.7]]), LABELS)
    pictures.embedding(tmp_path / "e.png", features, [], 0, "pca", photographs(tmp_path).train)
    (axes,) = saved[0].axes
    names = [text.get_text() for text in axes.texts]
    assert len(names) == len(set(names)) == 5, "of two images at one point one is drawn"
    assert {*names} < {f"IMG_{i}.png" for i in range(6)}
    drawn = [artist for artist in axes.artists if isinstance(artist, AnnotationBbox)]
    assert len(drawn) == 5
    for text, picture in zip(axes.texts, drawn, strict=True):
        assert text.xy == pytest.approx(picture.xy), "the name is below its own image"


def test_neighbours_carry_the_names_of_their_files(tmp_path, monkeypatch):
    """Without validation images the queries are the first half; the names are those of the images."""
    drawn = []
    monkeypatch.setattr(pictures, "neighbour_grid", lambda *args: drawn.append(args))
    data = photographs(tmp_path)
    x = torch.eye(6)
    x[3:] = x[[2, 0, 1]] + 0.01  # image 0 is nearest to image 4
    pictures.neighbours(tmp_path / "n.png", FeatureSet(x, LABELS), None, data, seed=0)
    ((_, queries, found, _, _, captions),) = drawn
    assert sorted((row[0], row[1]) for row in captions) == [
        ("IMG_0.png", "IMG_4.png"), ("IMG_1.png", "IMG_5.png"), ("IMG_2.png", "IMG_3.png")
    ]  # fmt: skip
    for query, row, names in zip(queries, found, captions, strict=True):
        for pixels, name in zip((query, *row), names, strict=True):
            shown = data.train.decode(data.train.names.index(name)).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(pixels, shown)
