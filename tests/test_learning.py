"""Slow proofs that what is trained learns: real images, small networks, minutes on a CPU."""

import json
import os
from pathlib import Path

import pytest
import torch

import main_contrastive
import main_linear
from utils.run import read_metrics

pytestmark = pytest.mark.slow
FOLDERS = os.environ.get("CIFAR10_FOLDERS", "")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """500 training and 100 test images of each class, linked from $CIFAR10_FOLDERS/{train,test}/<class>."""
    if not FOLDERS:
        pytest.skip("set CIFAR10_FOLDERS to a folder with train/<class>/ and test/<class>/ of CIFAR-10")
    root = tmp_path_factory.mktemp("cifar")
    for split, each in (("train", 500), ("test", 100)):
        for folder in sorted((Path(FOLDERS) / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir(), key=lambda p: (len(p.name), p.name))[:each]:
                (root / split / folder.name / path.name).symlink_to(path.resolve())
    torch.set_num_threads(os.cpu_count() or 1)  # these networks are large enough to share
    yield root
    torch.set_num_threads(1)


@pytest.mark.parametrize("pipeline", ["device", "torchvision"])
@pytest.mark.parametrize("method", ["simclr", "nnclr"])
def test_knn_rises_on_class_folders_of_cifar10(tmp_path, cifar, method, pipeline, capsys):
    queue = ["--queue_size", "1024", "--no_predictor"] if method == "nnclr" else []
    data = ["--data_folder", str(cifar), "--train_dir", "train", "--val_dir", "test", "--pipeline", pipeline]
    optimizer = [
        "--optimizer",
        "adamw",
        "--lr",
        "0.002",
        "--weight_decay",
        "0.01",
        "--epochs",
        "6",
        "--batch_size",
        "128",
    ]
    main_contrastive.main(["cifar10", "resnet10t", "--method", method, *queue, *data, *optimizer, "--hidden_mlp", "512",
                           "--proj_dim", "64", "--temperature", "0.2", "--precision", "32", "--num_workers", "2",
                           "--knn_every", "2", "--output", str(tmp_path), "--run_id", "r"])  # fmt: skip
    main_linear.main(["cifar10", "resnet10t", *data[:-2], "--pretrained_feature_extractor", str(tmp_path / "r"),
                      "--evaluation", "knn", "--baselines", "--output", str(tmp_path), "--run_id", "j"])  # fmt: skip
    rows = json.loads((tmp_path / "j" / "summary.json").read_text())
    raw, untrained, trained = (row["kNN 20"] for row in rows.values())
    rising = [float(row["knn_20"]) for row in read_metrics(tmp_path / "r" / "metrics.csv") if row.get("knn_20")]
    with capsys.disabled():
        print(f"\n{method}, {pipeline}: raw pixels {raw:.1f}, untrained {untrained:.1f}, epochs 2 4 6: {rising}")
    assert rising[-1] > untrained + 5
    assert trained == pytest.approx(rising[-1], abs=0.5), "judged afterwards as during training"
