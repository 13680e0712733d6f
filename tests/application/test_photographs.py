"""The whole way of somebody with a folder of photographs: train, index, find similar ones by name, hand over."""

import csv

import pytest
import timm
import torch

import hubconf
import main_contrastive
import main_linear
from tests.helpers.commands import TINY
from tests.helpers.images import write_image
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_embedding")


@pytest.fixture
def photos(tmp_path):
    """Twelve unlabelled photographs, some in a sub-folder."""
    for i in range(12):
        write_image(tmp_path / "photos" / ("sub" if i > 8 else "") / f"IMG_{i:04}.jpg", size=(60, 45), seed=i)
    return tmp_path / "photos"


def test_from_photographs_to_names(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["custom", TINY[1], "--data_folder", "photos", "--num_workers", "0"]
    main_contrastive.main([*common, "--method", "simclr", "--hidden_mlp", "16", "--proj_dim", "8", "--steps", "1",
                           "--batch_size", "6", "--large_size", "32", "--precision", "32", "--optimizer", "sgd",
                           "--run_id", "RUN"])  # fmt: skip
    weights = ["--pretrained_feature_extractor", "trained_models/RUN"]
    main_linear.main([*common, *weights, "--similar", "photos/IMG_0003.jpg", "photos/sub/IMG_0011.jpg",
                      "--similar_k", "4", "--run_id", "similar"])  # fmt: skip
    (table,) = (tmp_path / "trained_models" / "similar").glob("*_similar.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["rank"] == "1"] == ["IMG_0003.jpg", "sub/IMG_0011.jpg"]
    assert len(rows) == 8
    assert table.with_suffix(".png").is_file()

    main_linear.main([*common, *weights, "--evaluation", "features", "--run_id", "features", "--export", "hub", "mine"])
    (paths,) = (tmp_path / "trained_models" / "features").rglob("paths.txt")
    names, vectors = hubconf.embed("trained_models/RUN", "photos")
    assert paths.read_text().splitlines() == names
    assert len(names) == 12
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "epochs: 0.5" in card
    assert str(tmp_path) not in card
    network, images = timm.create_model("local-dir:mine", pretrained=True).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), hubconf.backbone("trained_models/RUN")(images))
    assert vectors.shape == (12, network.num_features)

    capsys.readouterr()
    with pytest.raises(UserError, match="--similar none.jpg: it does not exist; name image files"):
        main_linear.main([*common, *weights, "--similar", "none.jpg"])
