"""Slow proofs that what is trained learns: real images, small networks, minutes on a CPU."""

import os
from pathlib import Path

import pytest

import main_contrastive
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
    return root


def knn_by_epoch(run):
    return [float(row["knn_20"]) for row in read_metrics(run / "metrics.csv") if row.get("knn_20")]


@pytest.mark.parametrize("pipeline", ["device", "torchvision"])
@pytest.mark.parametrize("method", ["simclr", "nnclr"])
def test_knn_rises_on_class_folders_of_cifar10(tmp_path, cifar, method, pipeline):
    queue = ["--queue_size", "1024", "--pred_hidden_mlp", "512"] if method == "nnclr" else []
    data = ["--data_folder", str(cifar), "--train_dir", "train", "--val_dir", "test", "--pipeline", pipeline]
    optimizer = [
        "--optimizer",
        "adamw",
        "--lr",
        "0.004",
        "--weight_decay",
        "0.01",
        "--epochs",
        "8",
        "--batch_size",
        "128",
    ]
    main_contrastive.main(["cifar10", "resnet10t", "--method", method, *queue, *data, *optimizer, "--hidden_mlp", "512",
                           "--proj_dim", "64", "--temperature", "0.2", "--precision", "32", "--num_workers", "2",
                           "--knn_every", "1", "--output", str(tmp_path), "--run_id", "r"])  # fmt: skip
    knn = knn_by_epoch(tmp_path / "r")
    assert len(knn) == 5
    assert knn[-1] > knn[0] + 3, knn
    assert knn[-1] > 30, "chance is 10"
