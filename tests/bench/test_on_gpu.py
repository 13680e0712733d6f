"""The script for a machine with a GPU: its commands parse, and its short form is killed here and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from backbones.build import build_backbone, choose_stem
from bench import on_gpu
from bench.rows import all_rows
from cli.evaluate import parse_evaluation
from cli.plan import resolve
from cli.pretrain import method_args, parse_pretraining
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
from tests.helpers.commands import ROOT
from tests.helpers.images import class_folders
from utils.errors import UserError
from utils.plan import TrainingSet

SCRIPT = ROOT / "bench" / "on_gpu.sh"


@pytest.mark.parametrize("short", [False, True])
def test_training_items_are_commands_of_every_method(tmp_path, short):
    items = on_gpu.training_items(tmp_path, ["--data_folder", "images"], short)
    assert len({item.name for item in items}) == len(items)
    methods = set()
    for item in items:
        *_, pretraining, evaluation = item.commands
        assert (pretraining[0], evaluation[0]) == ("main_contrastive.py", "main_linear.py")
        words = [word for word in pretraining[1:] if word not in ("--resume", "auto")]
        args = parse_pretraining(words, METHODS, DATASETS)
        methods.add(args.method)
        assert (args.output, args.run_id, args.data_folder) == (str(tmp_path / "work"), item.name, "images")
        assert args.num_workers <= len(os.sched_getaffinity(0))
        for command in (words[1:] for words in item.commands if words[0] == "main_linear.py"):
            args = parse_evaluation(command, DATASETS, EVALUATIONS)
            assert len(args.pretrained_feature_extractor) == 1
    assert methods == ({"simclr"} if short else {*METHODS} - {"distill"})  # which needs the run of a larger network


def test_training_items_without_cifar_train_on_digits(tmp_path):
    (item,) = on_gpu.training_items(tmp_path, [], short=True)
    assert all(command[1] == "digits" and "--data_folder" not in command for command in item.commands)


@pytest.mark.parametrize("images", [50_000, 1_438], ids=["cifar", "digits"])
def test_training_items_fit_their_images(tmp_path, images):
    """A run that is refused only where its method is built would cost a loan of the machine."""
    flags = ["--data_folder", "images"] if images == 50_000 else []
    for item in on_gpu.training_items(tmp_path, flags, short=False):
        words = [word for word in item.commands[-2][1:] if word not in ("--resume", "auto")]
        args = parse_pretraining(words, METHODS, DATASETS)
        if args.method == "clusterfit":  # it reads the file of the command before
            continue
        stem = choose_stem(args.stem, args.backbone, args.large_size)
        plan = resolve(args, TrainingSet(args.dataset, images, images, 10, "f"), stem)
        method = METHODS[args.method]
        network, dim = build_backbone(plan.backbone, *plan.views.sizes, tokens_for=method.transformer_name)
        method(method_args(args, METHODS), plan, network, dim)


def test_bench_items_leave_out_what_is_missing_and_begin_with_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.rows.find_spec", lambda name: None)  # neither DALI nor Lightly nor faiss
    names = [item.name for item in on_gpu.bench_items(tmp_path, None, None, short=False)]
    assert names[:2] == ["bench-train-32", "bench-train-32-compiled"]
    assert "bench-kmeans-512: left out: faiss is not installed" in capsys.readouterr().out
    assert set(on_gpu.FIRST_ROWS) <= set(all_rows())
    assert not {"bench-decode", "bench-views-224-dali", "bench-train-32-lightly"} & set(names)


def test_cifar_folder_of_an_archive_of_class_folders_and_of_torchvision(tmp_path):
    for split in ("train", "test"):
        class_folders(tmp_path / "cifar10" / split, each=1)
    flags, images = on_gpu.cifar_folder(tmp_path / "cifar10", tmp_path)
    assert flags == ["--data_folder", str(tmp_path / "cifar10"), "--train_dir", "train", "--val_dir", "test"]
    assert images == tmp_path / "cifar10" / "train"
    archive = Path(shutil.make_archive(str(tmp_path / "cifar"), "xztar", tmp_path, "cifar10"))
    for _ in range(2):  # it is unpacked once
        flags, images = on_gpu.cifar_folder(archive, tmp_path / "out")
    assert images == tmp_path / "out" / "data" / "whole" / "cifar10" / "train"
    assert images.is_dir()
    with pytest.raises(UserError, match="neither train/ and test/"):
        on_gpu.cifar_folder(tmp_path / "cifar10" / "train", tmp_path)
    (tmp_path / "sets" / "cifar-10-batches-py").mkdir(parents=True)
    assert on_gpu.cifar_folder(tmp_path / "sets", tmp_path) == (["--data_folder", str(tmp_path / "sets")], None)


def test_parse_refuses_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="--cifar nowhere does not exist"):
        on_gpu.parse(["training", "--output", str(tmp_path), "--cifar", "nowhere"])


def test_script_has_no_mistake_that_shellcheck_knows():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", SCRIPT], check=True)


def script(output, *words, **environment):
    env = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.Popen(["bash", SCRIPT, *words, "--short", "--output", output], env=env, cwd=output.parent)


@pytest.mark.slow
def test_script_that_is_killed_in_training_goes_on_and_packs_its_results(tmp_path):
    output = tmp_path / "out"
    process = script(output, "all")
    metrics = output / "work" / "simclr-short" / "args.json"
    end = time.monotonic() + 600
    while not metrics.exists():  # tests and benchmark are done, and the training has begun
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    results = output / "results" / "gpu"
    before = {file: file.stat().st_mtime_ns for file in results.glob("*.json")}
    assert {file.name for file in before} == {"tests.json", "bench-quality.json"}
    assert script(output, "all").wait(600) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before, "what was done is not done again"
    run = json.loads((results / "simclr-short.json").read_text())
    assert run["begun"] == 2
    assert {"commit", "device", "machine", "packages", "seconds", "seed", "commands"} <= set(run)
    assert run["scores"]["training"]["loss"] > 0
    assert any("knn_20" in row for row in map(str, run["scores"]["evaluation"].values()))
    assert json.loads((results / "tests.json").read_text())["scores"]["skipped"] == 3
    with tarfile.open(output / "results.tar.gz") as archive:
        names = archive.getnames()
    assert {"results/gpu/simclr-short.json", "results/gpu/tests.jsonl", "logs/simclr-short.log"} <= set(names)
    assert not [name for name in names if name.endswith((".ckpt", ".safetensors"))]


@pytest.mark.slow
def test_script_runs_on_the_pretended_device(tmp_path):
    """Every process that it starts sees a CUDA device."""
    pretend = tmp_path / "pretend"
    pretend.mkdir()
    (pretend / "sitecustomize.py").write_text(
        "import torch._dynamo\n"  # it must not see the names that the device replaces
        "from tests.helpers.pretended_cuda import pretended_cuda\n"
        "device = pretended_cuda()\n"
        "device.__enter__()\n"
    )
    output = tmp_path / "out"
    assert script(output, "all", PYTHONPATH=str(pretend)).wait(900) == 0
    tests, run = (
        json.loads((output / "results/gpu" / name).read_text()) for name in ("tests.json", "simclr-short.json")
    )
    assert tests["scores"]["passed"] == 3
    assert run["device"] == "a pretended CUDA device"
    assert run["scores"]["training"]["images_per_second"] > 0
