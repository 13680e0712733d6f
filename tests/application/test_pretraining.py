"""A whole pretraining run: what it leaves, what it starts from, what plays no part."""

import json
import re

import pytest
import torch

import main_contrastive
from tests.helpers.commands import TINY, evaluate_run, small, words
from tests.helpers.images import class_folders, write_image
from tests.helpers.runs import checkpoint, equal, refused
from utils.files import read_metrics

pytestmark = pytest.mark.usefixtures("no_embedding")


def test_seed_changes_the_weights(tmp_path, few):
    for seed in ("1", "2"):
        argv = words("simclr", tmp_path, *few, "--steps", "2", "--seed", seed, "--run_id", seed)
        main_contrastive.main(["custom", *argv[1:]])
    assert not equal(checkpoint(tmp_path / "1")["state_dict"], checkpoint(tmp_path / "2")["state_dict"])


@pytest.mark.pictures
def test_run_folder_holds_the_documented_files_and_numbers(tmp_path, few, capsys):
    main_contrastive.main(["custom", *words("nnclr", tmp_path, *few)[1:], "--run_id", "r"])
    folder = tmp_path / "r"
    names = {"args.json", "metrics.csv", "last.ckpt", "previous.ckpt", "backbone.safetensors", "summary.json",
             "curves.png", "neighbours.png", "embedding.png", "alarms.json", "views.json", "neighbours.json",
             "embedding.json", "report.html"}  # fmt: skip
    assert {p.name for p in folder.iterdir()} == names
    assert "queue larger than the data set" in (folder / "alarms.json").read_text()
    args = json.loads((folder / "args.json").read_text())
    assert args["flags"]["queue_size"] == 300
    assert args["plan"]["optimizer"]["lr"] == pytest.approx(0.3 * 12 / 256)
    assert {"argv", "lookalike", "commit", "packages"} <= args.keys()
    assert args["plan"]["training_set"]["fingerprint"]
    summary = json.loads((folder / "summary.json").read_text())
    expected = {"loss", "val_probe_acc", "knn_5", "images_per_second", "seconds", "peak_memory_bytes"}
    assert expected <= summary.keys()
    rows = read_metrics(folder / "metrics.csv")
    assert [int(r["step"]) for r in rows if r["loss"]] == list(range(15))
    assert sum(bool(r["knn_5"]) for r in rows) == 2, "after epochs 2 and 3"
    assert {"nn_label_acc", "nn_similarity", "nn_distinct", "queue_fill", "queue_age"} <= rows[0].keys()
    printed = capsys.readouterr().out
    assert "epoch 3/3" in printed
    assert "0.3 x 12 / 256 = 0.0140625" in printed
    evaluate_run(tmp_path, "r", few)
    table = capsys.readouterr().out
    for word in ("raw pixels", "untrained", "nnclr", "logistic", "kNN 5", "15 labels"):
        assert word in table
    assert json.loads((tmp_path / "evaluated" / "summary.json").read_text()).keys() >= {"raw pixels"}


def test_pretraining_starts_from_pretrained_weights(tmp_path, few, capsys):
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--lr", "1e-30", "--weight_decay", "0"]
    main_contrastive.main([*argv, "--seed", "5", "--run_id", "first"])
    main_contrastive.main([*argv, "--run_id", "second", "--pretrained_feature_extractor", str(tmp_path / "first")])
    printed = capsys.readouterr().out
    assert re.search(r"loaded +\d+ +conv1", printed)
    a, b = (checkpoint(tmp_path / run)["state_dict"] for run in ("first", "second"))
    names = [k for k in a if k.startswith("backbone.") and k.endswith("weight")]
    assert names
    assert all(torch.allclose(a[k], b[k], rtol=0, atol=1e-20) for k in names), "seed 5, though this run's own is 0"
    again = [*argv, "--run_id", "dry", "--pretrained_feature_extractor", str(tmp_path / "first" / "last.ckpt")]
    main_contrastive.main([*again, "--dry_run"])
    assert "found under state_dict backbone.*" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
    weights = [*argv, "--pretrained_feature_extractor", str(tmp_path / "first")]
    assert "does not fit the backbone: 0 tensors found" in refused([*weights, "--append_prefix", "y"])
    assert "begins with 'x'" in refused([*weights, "--remove_prefix", "x", "--append_prefix", "y"])


@pytest.mark.pictures
def test_unlabelled_folder_trains_without_probe_and_knn(tmp_path, capsys):
    for i in range(20):
        write_image(tmp_path / "unlabelled" / f"{i}.png", seed=i)
    main_contrastive.main(["custom", TINY[1], "--data_folder", str(tmp_path / "unlabelled"), "--method", "nnclr",
                           *small("nnclr"), "--batch_size", "8", "--epochs", "2", "--large_size", "32", "--log_every",
                           "1", "--output", str(tmp_path), "--run_id", "r", "--precision", "32"])  # fmt: skip
    columns = read_metrics(tmp_path / "r" / "metrics.csv")[0].keys()
    assert not {c for c in columns if "probe" in c or "knn" in c or c == "nn_label_acc"}
    assert {p.name for p in (tmp_path / "r").glob("*.png")} == {"curves.png", "neighbours.png", "embedding.png"}
    assert "unlabelled folder of 20 images" in capsys.readouterr().out


def test_labels_do_not_change_the_backbone(tmp_path):
    """The same images under other labels give the same backbone: the probe's gradient ends at the features."""
    results = []
    for name, classes in (("two", 2), ("four", 4)):
        root = class_folders(tmp_path / name / "train", classes=2, each=16)
        if classes == 4:  # split each class in two without changing the order of the images
            for c in range(2):
                for half in ("a", "b"):
                    (root / f"c{c}{half}").mkdir()
                for i, path in enumerate(sorted((root / f"c{c}").iterdir())):
                    path.rename(root / f"c{c}{'a' if i < 8 else 'b'}" / path.name)
                (root / f"c{c}").rmdir()
        main_contrastive.main(["custom", TINY[1], "--data_folder", str(tmp_path / name), "--large_size", "16",
                               "--batch_size", "8", "--epochs", "3", "--precision", "32", "--output", str(tmp_path),
                               "--run_id", f"run-{name}", "--hidden_mlp", "16"])  # fmt: skip
        results.append(torch.load(tmp_path / f"run-{name}" / "last.ckpt", weights_only=True)["state_dict"])
    shared = [k for k in results[0] if not k.startswith("probe.")]
    assert all(torch.equal(results[0][k], results[1][k]) for k in shared)


def test_note_on_many_more_workers_than_cores(tmp_path, few, capsys, monkeypatch):
    monkeypatch.setattr("data.pipelines.choose.usable_cores", lambda: 2)
    argv = ["custom", *words("simclr", tmp_path, *few, "--pipeline", "stream", "--steps", "1")[1:]]
    for workers, message in ((4, False), (5, True)):
        main_contrastive.main([*argv, "--num_workers", str(workers), "--run_id", str(workers)])
        assert ("note: 5 workers share 2 cores" in capsys.readouterr().out) is message
