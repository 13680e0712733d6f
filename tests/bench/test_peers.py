"""Peers: Lightly's methods and solo-learn's settings on the images, the network and the seeds of Lookalike."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import main_linear
from backbones.build import build_backbone
from backbones.load import load_backbone, open_weights
from bench import peers
from bench.lightly import parts
from cli.pretrain import parse_pretraining
from data.datasets import DATASETS, read_dataset
from methods import METHODS
from tests.helpers.images import class_folders, read
from utils.errors import UserError
from utils.plan import BackboneConfig

NETWORK, WIDTH = "test_resnet.r160_in1k", 12
needs_lightly = pytest.mark.skipif(not find_spec("lightly"), reason="lightly (requirements-bench.txt) is not installed")


@pytest.fixture
def folder(tmp_path):
    """220 images to train on, more than the 200 neighbours of an evaluation, and 20 others."""
    class_folders(tmp_path / "train", each=110, size=(32, 32))
    class_folders(tmp_path / "test", each=10, size=(32, 32), seed=1000)
    return tmp_path


@needs_lightly
def test_main_trains_saves_evaluates_and_records(folder):
    argv = ["simclr", "--epochs", "2", "--batch_size", "110", "--seed", "4", "--data_folder", str(folder),
            "--precision", "32", "--output", str(folder / "runs"), "--record", str(folder / "ledger")]  # fmt: skip
    peers.main(argv)
    weights = open_weights(str(folder / "runs" / "lightly-simclr-s4"))
    facts = {"dataset": "cifar10", "backbone": NETWORK, "stem": "imagenet", "large_size": "32", "seed": "4"}
    assert weights.metadata.items() >= facts.items()
    assert weights.metadata["method"].startswith("simclr (Lightly 1")
    record, evaluated = (
        json.loads((folder / "ledger" / f"lightly-simclr-s4{end}.json").read_text()) for end in ("", "-evaluated")
    )
    assert (record["kind"], record["argv"], record["seed"]) == ("peer", argv, 4)
    assert record["data"] == evaluated["data"]
    assert record["seconds"] > 0
    assert record["scores"]["loss"]["value"] == pytest.approx(np.log(2 * 110 - 1), abs=1.0)
    (row,) = evaluated["rows"].values()
    assert set(row["scores"]) == {"knn_20", "knn_200", "logistic"}
    torch.manual_seed(0)
    network, _ = build_backbone(BackboneConfig(NETWORK, "imagenet"), 32)
    load_backbone(weights, network)
    with pytest.raises(UserError, match="already holds a run"):
        peers.main(argv)


@needs_lightly
@pytest.mark.parametrize("method", peers.METHODS)
def test_methods_train_the_backbone_by_their_own_optimizer(method):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, WIDTH))
    _, module, *head_and_loss = parts(method, WIDTH, 32, read())
    model = module(backbone, *head_and_loss, 10, 256)
    views = [torch.randn(8, 3, 4, 4) for _ in range(2)]
    model.training_step(views, 0).backward()
    assert backbone[1].weight.grad.abs().sum() > 0
    (optimizer,), (scheduler,) = model.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.grad is not None}
    assert optimizer.defaults["lr"] == (0.3 if method == "vicreg" else 0.12)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] < 1e-3


@needs_lightly
def test_byol_moves_its_target_by_a_hundredth_before_a_step():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, WIDTH))
    _, module, *head_and_loss = parts("byol", WIDTH, 32, read())
    model = module(backbone, *head_and_loss, 10, 256)
    before = model.target[0][1].weight.clone()
    with torch.no_grad():
        backbone[1].weight.add_(1.0)
    model.training_step([torch.randn(8, 3, 4, 4) for _ in range(2)], 0)
    assert torch.allclose(model.target[0][1].weight, before + 0.01)


@needs_lightly
def test_nnclr_puts_the_second_view_into_the_bank():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, WIDTH))
    _, module, *head_and_loss = parts("nnclr", WIDTH, 32, read())
    model = module(backbone, *head_and_loss, 10, 256)
    x = [torch.randn(8, 3, 4, 4) for _ in range(2)]
    model.training_step(x, 0)
    assert torch.allclose(model.bank.bank[:8], model.network(x[1]), atol=1e-5)
    assert model.bank.bank.shape == (4096, 256)


@needs_lightly
@pytest.mark.parametrize("method", peers.METHODS)
def test_views_of_a_black_image_have_the_normalization_of_the_evaluation(method):
    data = read()
    transform, *_ = parts(method, WIDTH, 32, data)
    normalized = -torch.tensor(data.mean) / torch.tensor(data.std)
    for view in transform(Image.new("RGB", (32, 32))):
        assert torch.allclose(view, normalized[:, None, None].expand(3, 32, 32), atol=1e-4)


def test_views_in_memory_have_the_pixels_that_pillow_reads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = tmp_path / "train" / "c" / "0.jpg"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).resize((32, 32)).save(path)
    (image,) = peers.ViewsInMemory(read_dataset("custom", str(tmp_path), None, None).train, None).images
    assert np.array_equal(image, Image.open(path).convert("RGB"))


@pytest.mark.parametrize("method", peers.METHODS)
def test_solo_learn_words_keep_the_settings_of_the_recipe(method):
    args = peers.parse([method, "--peer", "solo-learn", "--data_folder", "x", "--epochs", "50", "--seed", "2"])
    flags = parse_pretraining(peers.solo_learn_words(args), METHODS, DATASETS)
    assert (flags.backbone, flags.epochs, flags.warmup_epochs, flags.seed) == (NETWORK, 50, 5, 2)
    assert (flags.method, flags.optimizer, flags.lars_eta, flags.lars_clip) == (method, "lars", 0.02, True)
    assert flags.lr == {"simclr": 0.4, "nnclr": 0.4, "byol": 1.0, "barlow_twins": 0.3, "vicreg": 0.3}[method]
    assert (flags.run_id, flags.train_dir, flags.val_dir) == (f"solo-learn-{method}-s2", "train", "test")


@needs_lightly
def test_main_refuses_too_few_images_and_names_what_is_not_installed(folder, monkeypatch):
    words = ["simclr", "--data_folder", str(folder), "--output", str(folder / "runs")]
    with pytest.raises(UserError, match="--batch_size 256: only 220 images"):
        peers.main(words)
    monkeypatch.setattr("bench.rows.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements-bench.txt"):
        peers.main(words)
    assert not (folder / "runs").exists()


@needs_lightly
@pytest.mark.slow
def test_every_method_trains_in_bf16(folder):
    """A fast test would build the heads of 2,048 and 4,096 rows, and step them in bf16, once for each method."""
    data = read_dataset("cifar10", str(folder), "train", "test")
    for method in peers.METHODS:
        words = [method, "--epochs", "1", "--batch_size", "110", "--precision", "bf16-mixed", "--data_folder", "unread"]
        args = peers.parse([*words, "--output", str(folder), "--run_id", method])
        (folder / method).mkdir()
        model = peers.train_lightly(args, data)
        assert np.isfinite(model.numbers["loss"])
        assert open_weights(str(folder / method)).metadata["method"].startswith(f"{method} (Lightly ")
        load_backbone(open_weights(str(folder / method)), build_backbone(BackboneConfig(NETWORK, "imagenet"), 32)[0])


@needs_lightly
@pytest.mark.slow
@pytest.mark.parametrize("peer", peers.PEERS)
def test_simclr_of_a_peer_lifts_knn(tmp_path, peer):
    """2,000 training images of CIFAR-10 from $CIFAR10_FOLDERS, four epochs."""
    source = os.environ.get("CIFAR10_FOLDERS")
    if not source:
        pytest.skip("set CIFAR10_FOLDERS to a folder with train/<class>/ and test/<class>/ of CIFAR-10")
    for split, each in (("train", 200), ("test", 100)):
        for kind in sorted((Path(source) / split).iterdir()):
            (tmp_path / split / kind.name).mkdir(parents=True)
            for path in sorted(kind.iterdir())[:each]:
                shutil.copy(path, tmp_path / split / kind.name)
    shared = ["--data_folder", str(tmp_path), "--num_workers", "0", "--output", str(tmp_path)]
    peers.main(["simclr", "--peer", peer, "--epochs", "4", "--batch_size", "128", "--run_id", "run", *shared])
    main_linear.main(["cifar10", NETWORK, *peers.SPLITS, *shared, "--pretrained_feature_extractor",
                      str(tmp_path / "run"), "--evaluation", "knn", "--baselines", "--run_id", "beside"])  # fmt: skip
    rows = json.loads((tmp_path / "beside" / "summary.json").read_text())
    _, untrained, trained = (row["scores"]["knn_20"] for row in rows.values())
    assert trained > untrained
