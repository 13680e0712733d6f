"""Tests of main_linear.py from the command line to the table, the files and the export."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import main_contrastive
import main_linear
from backbones.build import build_backbone
from tests.helpers.commands import TINY, evaluate_run, start, words
from tests.helpers.images import spoil, unlabelled_folder, write_image
from tests.torture.launch import run_to_end
from utils.cluster_file import read_clusters
from utils.errors import UserError
from utils.files import read_metrics
from utils.plan import BackboneConfig

pytestmark = pytest.mark.usefixtures("no_embedding")
NETWORK = BackboneConfig(TINY[1], "imagenet")


def scores(folder):
    """The scores of the only row in a summary."""
    (row,) = json.loads((folder / "summary.json").read_text()).values()
    return row["scores"]


def test_weights_that_do_not_fit_are_refused(tmp_path, few):
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", "r"])
    with pytest.raises(UserError, match="--stem small|was trained with the imagenet stem, not small"):
        evaluate_run(tmp_path, "r", few, "--stem", "small")
    with pytest.raises(UserError, match="test_resnet.r160_in1k, not of resnet18"):
        main_linear.main(["custom", "resnet18", *few[:2], "--pretrained_feature_extractor", str(tmp_path / "r")])
    with pytest.raises(UserError, match="--evaluation linear needs labels and validation images, custom has no"):
        main_linear.main(["custom", TINY[1], "--data_folder", few[1], "--train_dir", "train/c0",
                          "--pretrained_feature_extractor", str(tmp_path / "r")])  # fmt: skip
    assert not (tmp_path / "evaluated").exists()


def test_foreign_weights_are_evaluated_and_exported(tmp_path, few, capsys):
    """A checkpoint of another tool -> report -> table -> a file that timm loads."""
    backbone, _ = build_backbone(NETWORK, 16)
    foreign = tmp_path / "moco.pth"
    tensors = {f"module.encoder_q.{k}": v for k, v in backbone.state_dict().items()}
    torch.save({"state_dict": tensors | {"module.queue": torch.ones(2)}, "arch": "r"}, foreign)
    common = ["custom", TINY[1], *few[:4], "--pretrained_feature_extractor", str(foreign), "--output", str(tmp_path)]
    main_linear.main([*common, "--dry_run"])
    said = capsys.readouterr().out
    assert "found under state_dict module.encoder_q.*" in said
    assert "top-1" not in said
    out = tmp_path / "out.pth"
    main_linear.main(
        [*common, "--evaluation", "knn", "quality", "--knn_k", "5", "--run_id", "j", "--export", "timm", str(out)]
    )
    said = capsys.readouterr().out
    assert "RankMe" in said
    assert f"{out}\n{tmp_path / 'out.md'}" in said
    assert "knn_5" in (tmp_path / "out.md").read_text()
    timm.create_model(TINY[1], num_classes=0).load_state_dict(torch.load(out, weights_only=True))
    with pytest.raises(UserError, match="out.pth exists and is not overwritten"):
        main_linear.main([*common, "--export", "timm", str(out)])


def test_a_run_is_exported_with_its_card_without_an_evaluation(tmp_path, few):
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", "r"])
    run, out = str(tmp_path / "r"), tmp_path / "x.safetensors"
    main_linear.main(["custom", TINY[1], "--pretrained_feature_extractor", run, "--export", "timm", str(out),
                      "--output", str(tmp_path)])  # fmt: skip
    card = out.with_suffix(".md").read_text()
    for fact in ("simclr", "python3 main_contrastive.py custom", "steps: 1", "custom"):
        assert fact in card


def test_layers_that_are_left_random_are_those_of_the_seed(tmp_path):
    """Else the processes of one evaluation would have other networks, and two runs other scores."""
    torch.save(build_backbone(NETWORK, 32)[0].state_dict(), tmp_path / "w.pth")
    found = {}
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        torch.manual_seed(len(found))
        main_linear.main(["digits", TINY[1], "--pretrained_feature_extractor", str(tmp_path / "w.pth"), "--skip_layers",
                          "layer4.0.conv1", "--seed", seed, "--export", "timm", str(tmp_path / f"{name}.pth"),
                          "--output", str(tmp_path)])  # fmt: skip
        found[name] = torch.load(tmp_path / f"{name}.pth", weights_only=True)["layer4.0.conv1.weight"]
    assert torch.equal(found["a"], found["b"])
    assert not torch.equal(found["a"], found["c"])


@pytest.mark.parametrize("evaluation", ["logistic", "linear", "finetune"])
def test_weights_of_another_data_set_are_evaluated_with_a_note(tmp_path, few, capsys, evaluation):
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", "r"])
    more = [] if evaluation == "logistic" else ["--epochs", "1", "--lr", "0.1"]
    main_linear.main(["digits", TINY[1], "--pretrained_feature_extractor", str(tmp_path / "r"), "--evaluation",
                      evaluation, *more, "--output", str(tmp_path), "--run_id", "t"])  # fmt: skip
    assert "was pretrained on custom and is evaluated on digits" in capsys.readouterr().out
    ((title, row),) = json.loads((tmp_path / "t" / "summary.json").read_text()).items()
    assert (title, row["pretrained_on"]) == (f"{TINY[1]}, simclr on custom", "custom")
    assert set(row["scores"]) == {"linear_sgd" if evaluation == "linear" else evaluation}


def test_several_labels_go_from_a_table_to_the_mean_average_precision(tmp_path, few, capsys):
    """Training does without the labels; kNN and logistic regression report mAP in table, summary and ledger."""
    folder = Path(few[1])
    for split in ("train", "val"):
        names = sorted(path.relative_to(folder) for path in (folder / split).rglob("*.png"))
        rows = [f"{name},{name.parts[1]}{'|even' if i % 2 else ''}" for i, name in enumerate(names)]
        (folder / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
    table = ["--data_folder", few[1], "--train_dir", "train.csv", "--val_dir", "val.csv"]
    main_contrastive.main(["custom", *words("simclr", tmp_path, *table, *few[2:])[1:], "--steps", "1", "--run_id", "r"])
    assert "have several labels, of 4 classes" in capsys.readouterr().out
    argv = ["custom", TINY[1], *table, "--pretrained_feature_extractor", str(tmp_path / "r"), "--output", str(tmp_path)]
    main_linear.main([*argv, "--evaluation", "knn", "logistic", "quality", "--knn_k", "5", "--run_id", "e",
                      "--record", str(tmp_path / "ledger")])  # fmt: skip
    said = capsys.readouterr().out
    assert "mean average precision (mAP) in per cent" in said
    assert re.search(r"kNN 5 mAP +logistic mAP +RankMe", said)
    found = scores(tmp_path / "e")
    assert 0 < found["knn_5/map"] <= 100
    (recorded,) = json.loads((tmp_path / "ledger" / "e.json").read_text())["rows"].values()
    assert recorded["scores"]["logistic/map"]["value"] == found["logistic/map"]
    assert "average precision" in recorded["scores"]["knn_5/map"]["definition"]
    with pytest.raises(UserError, match="--evaluation linear needs one label per image"):
        main_linear.main([*argv, "--evaluation", "linear"])


@pytest.mark.pictures
def test_two_processes_evaluate_as_one(tmp_path, few):
    """The same numbers, files once, one table."""
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", "r"])
    argv = ["custom", TINY[1], *few[:2], "--pretrained_feature_extractor", str(tmp_path / "r"), "--evaluation",
            "linear", "knn", "logistic", "features", "pictures", "--knn_k", "5", "--lr", "0.1", "1", "--epochs", "3",
            "--num_workers", "0", "--output", str(tmp_path)]  # fmt: skip
    main_linear.main([*argv, "--batch_size", "12", "--run_id", "one"])
    ended = run_to_end([*argv, "--batch_size", "6", "--run_id", "two"], tmp_path, processes=2, main="main_linear")
    assert ended.statuses == [0, 0], ended.text
    assert ended.text.count("top-1 in per cent") == 1
    one, two = (json.loads((tmp_path / r / "summary.json").read_text()) for r in ("one", "two"))
    for row in one:
        assert one[row]["scores"] == pytest.approx(two[row]["scores"], abs=0.01)
    files = [{p.relative_to(tmp_path / r) for p in (tmp_path / r).rglob("*.*")} for r in ("one", "two")]
    of_pictures = ("_neighbours.json", "_embedding.json")  # forked commands draw no data of a report
    assert {p for p in files[0] if not p.name.endswith(of_pictures)} == files[1]
    assert sum(p.suffix == ".png" for p in files[0]) == 3
    a, b = (np.load(next((tmp_path / r).rglob("val/features.npy"))) for r in ("one", "two"))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_layer_evaluates_an_earlier_block(tmp_path, few):
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", "r"])
    argv = ["custom", TINY[1], *few[:2], "--evaluation", "features", "--features_dir", str(tmp_path / "f"), "--output",
            str(tmp_path), "--pretrained_feature_extractor", str(tmp_path / "r")]  # fmt: skip
    main_linear.main([*argv, "--layer", "layer2", "--run_id", "a"])
    (path,) = (tmp_path / "f").rglob("train/features.npy")
    assert np.load(path).shape == (60, 48)
    with pytest.raises(UserError, match="holds features of another"):
        main_linear.main([*argv, "--run_id", "b"])


def test_bad_images_are_left_out_of_an_evaluation(tmp_path, few, capsys):
    """The same numbers as without those files, and features of the images that are left."""
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", "r"])
    argv = ["custom", TINY[1], *few[:2], "--evaluation", "knn", "logistic", "features", "--knn_k", "5", "--output",
            str(tmp_path), "--pretrained_feature_extractor", str(tmp_path / "r")]  # fmt: skip
    main_linear.main([*argv, "--run_id", "clean"])
    bad = [path for part in ("train/c1", "val/c0") for path in spoil(tmp_path / "images" / part)]
    with pytest.raises(UserError, match="are not readable images .*, or pass --on_bad_image skip"):
        main_linear.main([*argv, "--run_id", "x"])
    assert not (tmp_path / "x").exists()
    capsys.readouterr()
    main_linear.main([*argv, "--run_id", "skipped", "--on_bad_image", "skip"])
    assert capsys.readouterr().out.count("files in") == 2, "a note of each split"
    a, b = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("clean", "skipped"))
    assert a == b
    lines = (tmp_path / "skipped" / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in bad]
    for split, images in (("train", 60), ("val", 24)):
        x, y = (np.load(next((tmp_path / run).rglob(f"{split}/labels.npy"))) for run in ("clean", "skipped"))
        assert len(x) == images
        assert np.array_equal(x, y)


def test_several_weights_are_rows_of_one_table(tmp_path, few, capsys):
    for run, seed in (("a", "1"), ("b", "2")):
        main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", run,
                               "--seed", seed])  # fmt: skip
    both = [str(tmp_path / run) for run in ("a", "b")]
    argv = ["custom", TINY[1], *few[:2], "--evaluation", "knn", "--knn_k", "5", "--output", str(tmp_path)]
    main_linear.main([*argv, "--pretrained_feature_extractor", *both, "--run_id", "both"])
    rows = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert list(rows) == [f"{TINY[1]}, a", f"{TINY[1]}, b"]
    for run in ("a", "b"):
        main_linear.main([*argv, "--pretrained_feature_extractor", str(tmp_path / run), "--run_id", f"only-{run}"])
        assert rows[f"{TINY[1]}, {run}"]["scores"] == scores(tmp_path / f"only-{run}")
    with pytest.raises(UserError, match="names a twice"):
        main_linear.main([*argv, "--pretrained_feature_extractor", both[0], both[0]])
    with pytest.raises(UserError, match="--export writes one backbone"):
        main_linear.main([*argv, "--pretrained_feature_extractor", *both, "--export", "timm", str(tmp_path / "x")])


def test_an_unlabelled_folder_is_evaluated_without_labels(tmp_path, capsys):
    weights = tmp_path / "w.pth"
    torch.save(build_backbone(NETWORK, 32)[0].state_dict(), weights)
    main_linear.main(["custom", TINY[1], "--data_folder", unlabelled_folder(tmp_path), "--large_size", "32", "--output",
                      str(tmp_path), "--run_id", "r", "--pretrained_feature_extractor", str(weights), "--evaluation",
                      "quality", "pictures", "features"])  # fmt: skip
    names = ("rankme", "alpha_req", "alignment", "uniformity", "std")
    assert scores(tmp_path / "r").keys() == {f"quality/{name}" for name in names}
    assert len(list((tmp_path / "r").glob("*_neighbours.png"))) == 1
    assert len(np.load(next((tmp_path / "r").rglob("train/features.npy")))) == 6
    said = capsys.readouterr().out
    assert "note: " in said
    assert "6 images" in said
    with pytest.raises(UserError, match="--evaluation knn needs labels .*, or ask for quality, pictures,"):
        main_linear.main(["custom", TINY[1], "--data_folder", unlabelled_folder(tmp_path), "--large_size", "32",
                          "--pretrained_feature_extractor", str(weights), "--evaluation", "quality",
                          "knn"])  # fmt: skip


def cluster(output, data, *more):
    main_linear.main(["custom", TINY[1], *data, "--pretrained_feature_extractor", str(output / "teacher"), "--output",
                      str(output), "--evaluation", "cluster", "--batch_size", "12", *more])  # fmt: skip


def test_clusterfit_from_a_pretrained_network_to_its_student(tmp_path, few, capsys):
    """The two commands of ClusterFit; the second stopped and resumed without the file of the first."""
    argv = ["custom", *words("rotnet", tmp_path, *few)[1:], "--run_id", "teacher"]
    main_contrastive.main(argv)
    file = tmp_path / "ids.npz"
    cluster(tmp_path, few[:2], "--num_clusters", "7", "--cluster_output", str(file), "--run_id", "c")
    said = capsys.readouterr().out
    assert re.search(r"images +\d+ in the smallest of 7 clusters", said)
    assert re.search(r"advice +7 clusters of 60 images leave few images in each", said)
    assert len(list((tmp_path / "c").glob("*_clusters.png"))) == 1
    student = ["custom", *words("clusterfit", tmp_path, *few, "--cluster_file", str(file))[1:]]
    main_contrastive.main([*student, "--run_id", "student"])
    assert "cluster_acc" in read_metrics(tmp_path / "student" / "metrics.csv")[0]
    state = torch.load(tmp_path / "student" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["ids"].tolist() == read_clusters(file).ids.tolist()
    assert state["head.weight"].shape[0] == 7
    with pytest.raises(UserError, match="has the clusters of custom, not of digits"):
        main_contrastive.main([*words("clusterfit", tmp_path, "--cluster_file", str(file)), "--run_id", "other"])
    write_image(Path(few[1]) / "train" / "c0" / "new.png")
    with pytest.raises(UserError, match="has the clusters of 60 images, custom has 61 here"):
        main_contrastive.main([*student, "--run_id", "more"])
    with pytest.raises(UserError, match="ids.npz exists and is not overwritten"):
        cluster(tmp_path, few[:2], "--num_clusters", "7", "--cluster_output", str(file), "--run_id", "d")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "d").exists()


def test_cluster_needs_no_labels_and_takes_any_block(tmp_path):
    data = ["--data_folder", unlabelled_folder(tmp_path), "--large_size", "32"]
    weights = tmp_path / "w.pth"
    torch.save(build_backbone(NETWORK, 32)[0].state_dict(), weights)
    argv = ["custom", TINY[1], *data, "--pretrained_feature_extractor", str(weights), "--output", str(tmp_path),
            "--evaluation", "cluster", "--num_clusters", "2"]  # fmt: skip
    main_linear.main([*argv, "--cluster_output", str(tmp_path / "a.npz"), "--layer", "layer2", "--run_id", "a"])
    found = read_clusters(tmp_path / "a.npz")
    assert found.centroids.shape == (2, 48)
    assert (len(found.ids), len(found.val_ids)) == (6, 0)
    assert (tmp_path / "features").is_dir(), "weights outside a run folder keep their features among the runs"
    file = str(tmp_path / "a.npz")
    main_contrastive.main(["custom", TINY[1], *data, "--method", "clusterfit", "--cluster_file", file, "--epochs",
                           "1", "--batch_size", "3", "--precision", "32", "--output", str(tmp_path),
                           "--run_id", "s"])  # fmt: skip
    with pytest.raises(UserError, match="--layer layer9: .*no such block .*layer4"):
        main_linear.main([*argv, "--cluster_output", str(tmp_path / "b.npz"), "--layer", "layer9", "--run_id", "b"])
    with pytest.raises(UserError, match="--pca 97 of features with 96 coordinates and 6 rows; at most 6"):
        main_linear.main([*argv, "--cluster_output", str(tmp_path / "b.npz"), "--pca", "97", "--run_id", "b"])
    assert not (tmp_path / "b").exists(), "an empty folder does not stay"


@pytest.mark.slow  # tests/evaluation/test_cluster_images.py has the same without starting the program
def test_two_processes_find_the_clusters_of_one(tmp_path, few):
    main_contrastive.main(["custom", *words("rotnet", tmp_path, *few)[1:], "--steps", "1", "--run_id", "teacher"])
    argv = [*few[:2], "--num_clusters", "5", "--features_dir"]
    cluster(tmp_path, [*argv, str(tmp_path / "f1")], "--cluster_output", str(tmp_path / "1.npz"), "--run_id", "one")
    process = start(["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29613", "main_linear.py",
                     "custom", TINY[1], *argv, str(tmp_path / "f2"), "--pretrained_feature_extractor",
                     str(tmp_path / "teacher"), "--output", str(tmp_path), "--evaluation", "cluster", "--batch_size",
                     "12", "--cluster_output", str(tmp_path / "2.npz"), "--run_id", "two"])  # fmt: skip
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    one, two = (read_clusters(tmp_path / f"{n}.npz") for n in (1, 2))
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.val_ids, two.val_ids)


def test_several_gpus_start_a_process_each(monkeypatch):
    started = []

    class Replaced(Exception):
        """os.execv does not return."""

    def execv(program, words):
        started.append(words)
        raise Replaced

    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("sys.argv", ["main_linear.py", "x"])
    argv = ["digits", "resnet18", "--pretrained_feature_extractor", "w", "--gpus", "1", "3"]
    with pytest.raises(Replaced):
        main_linear.main(argv)
    assert started[0][1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "main_linear.py",
                              *argv]  # fmt: skip


def test_scores_and_pictures_go_to_weights_and_biases(tmp_path, few, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--steps", "1", "--run_id", "r"])
    argv = ["custom", TINY[1], *few[:2], "--pretrained_feature_extractor", str(tmp_path / "r"), "--evaluation", "knn",
            "pictures", "--embedding", "pca", "--knn_k", "5", "--output", str(tmp_path), "--run_id", "j", "--wandb",
            "--offline", "--project", "p"]  # fmt: skip
    ended = run_to_end(argv, tmp_path, main="main_linear")
    assert ended.statuses == [0], ended.text
    (offline,) = (tmp_path / "j" / "wandb").glob("offline-run-*-j")
    logged = {p.name.split("_")[-3] for p in (offline / "files" / "media" / "images").glob("*.png")}
    assert logged == {"neighbours", "embedding", "confusion"}
    assert b"knn_5" in next(offline.glob("*.wandb")).read_bytes()


def test_a_transformer_is_evaluated_as_it_was_trained(tmp_path, few, capsys):
    """Its patches, drop path and pooling need not be named again, to resume it or to evaluate it."""
    data = ["custom", "test_vit", *few[:2], "--num_workers", "0", "--output", str(tmp_path)]
    main_contrastive.main([*data, "--method", "simclr", "--hidden_mlp", "16", "--proj_dim", "8", *few[2:],
                           "--small_views", "1", "--small_size", "8", "--patch_size", "8", "--drop_path", "0.2",
                           "--pool", "avg", "--steps", "1", "--knn_every", "0", "--precision", "32", "--run_id",
                           "r"])  # fmt: skip
    assert "patches of 8 px, drop path 0.2, average of the tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="drop_path"):
        main_contrastive.main(["--resume", str(tmp_path / "r"), "--drop_path", "0.1"])
    argv = [*data, "--pretrained_feature_extractor", str(tmp_path / "r"), "--evaluation", "logistic", "features"]
    for name, more in (("own", []), ("blocks", ["--last_blocks", "4"]), ("token", ["--pool", "token"])):
        main_linear.main([*argv, "--features_dir", str(tmp_path / name), *more, "--run_id", f"{name}-run"])
    own, blocks, token = (
        np.load(next((tmp_path / name).rglob("train/features.npy"))) for name in ("own", "blocks", "token")
    )
    assert (own.shape, blocks.shape) == ((60, 64), (60, 256))
    np.testing.assert_allclose(blocks[:, 192:], own, atol=1e-5)
    assert np.abs(token - own).max() > 1e-3
    with pytest.raises(UserError, match="holds features of another"):
        main_linear.main([*argv, "--features_dir", str(tmp_path / "own"), "--pool", "token"])
    with pytest.raises(UserError, match="trained with patches of 8 pixels; omit --patch_size 16"):
        main_linear.main([*argv, "--patch_size", "16"])
