"""What several tests need: small arguments, small networks, small images, several processes."""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cli.plan import resolve
from cli.pretrain import parse_pretraining
from data.augment_torch import apply_color_augmentations, crop_axes, resample
from data.datasets import DATASETS, Data, read_dataset
from methods import METHODS
from utils.cluster_file import Clusters, write_clusters

# Sizes of heads and queues with which a method takes milliseconds, for those that have them.
SIZES = {"--hidden_mlp": "16", "--proj_dim": "8", "--pred_hidden_mlp": "16", "--queue_size": "40"}
ROOT = Path(__file__).resolve().parent.parent


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even another of NVIDIA's packages
        return False


NO_DALI = "needs NVIDIA DALI: pip install -r requirements-dali.txt"
WITH_DALI = [pytest.mark.dali, pytest.mark.skipif(not _has_dali(), reason=NO_DALI)]
TINY = ["digits", "test_resnet.r160_in1k", "--precision", "32", "--num_workers", "0"]


def with_dali(test):
    """A test of the dali pipeline: skipped where that is absent."""
    for mark in WITH_DALI:
        test = mark(test)
    return test


def small(method: str, *words: str, data_folder: str | None = None) -> list[str]:
    """The words, and small sizes (and clusters of the images) of what the method has and they do not mention."""
    parser = ArgumentParser(add_help=False)
    METHODS[method].add_args(parser)
    flags = {option for action in parser._actions for option in action.option_strings} - set(words)
    if "--no_predictor" in words:
        flags.discard("--pred_hidden_mlp")
    clusters = ["--clusters", clusters_file(data_folder)] if "--clusters" in flags else []
    return [*(part for flag, size in SIZES.items() if flag in flags for part in (flag, size)), *clusters, *words]


@functools.cache
def read(data_folder: str | None = None) -> Data:
    """The images of a folder, or else the digits."""
    return read_dataset("custom" if data_folder else "digits", data_folder or "none", None, None)


@functools.cache
def digit_files() -> Data:
    """The digits as they would be in class folders, for a pipeline that reads files only."""
    root, digits = Path(tempfile.mkdtemp()), read()
    for split, images in digits.splits().items():
        for i, label in enumerate(images.labels.tolist()):
            path = root / split / str(label) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.decode(i).permute(1, 2, 0).numpy()).save(path)
    return dataclasses.replace(read_dataset("custom", str(root), None, None), mean=digits.mean, std=digits.std)


@functools.cache
def clusters_file(data_folder: str | None = None, k: int = 4) -> str:
    """A file that puts these images in turn into k clusters."""
    train = read(data_folder).train
    about = {"dataset": "custom" if data_folder else "digits", "images": len(train), "fingerprint": train.fingerprint()}
    none = np.zeros((0, 0), np.float32)
    path = Path(tempfile.mkdtemp()) / "clusters.npz"
    write_clusters(path, Clusters(np.arange(len(train)) % k, np.arange(3), np.eye(k, dtype="f4"), none, none, about))
    return str(path)


def arguments(method: str, *words: str, images: int = 1438, classes: int = 10) -> Namespace:
    """Resolved arguments of a small run."""
    argv = [*TINY, "--method", method, *small(method, *words)]
    return resolve(parse_pretraining(argv, METHODS, DATASETS), images, images, classes, read().train.fingerprint())


def words(method, output, *more):
    """A run of three short epochs on the digits."""
    queue = ["--queue_size", "300"] if method == "nnclr" and "--queue_size" not in more else []
    folder = more[more.index("--data_folder") + 1] if "--data_folder" in more else None
    return [*TINY, "--method", method, *small(method, *queue, data_folder=folder), "--batch_size", "256",
            "--epochs", "3", "--optimizer", "sgd", "--log_every", "1", "--knn_every", "2",
            "--output", str(output), *more]  # fmt: skip


def judge(output, run, few, *more):
    """The quick evaluations of a run on `few`."""
    import main_linear  # here: the processes of Ranks do without

    data = few[:2]  # main_linear.py takes the size of the views from the weights
    main_linear.main(["custom", TINY[1], *data, "--pretrained_feature_extractor", str(output / run), "--evaluation",
                      "probe", "knn", "fewshot", "--shots", "5", "--knn_k", "5", "--baselines", "--output", str(output),
                      "--run_id", "judged", *more])  # fmt: skip


def batched(images, params, spec, ratio=None):
    """(N, 3, H, W) uint8 -> one view of each by the batched executor, in [0, 1]."""
    y, x = crop_axes(params.box, spec.size)
    if ratio is not None:
        y, x = y.stretched(ratio[:, 0]), x.stretched(ratio[:, 1])
    return apply_color_augmentations(resample(images, y, x, spec.size, params.flip), params, spec.blur_taps)


class Flat(nn.Module):
    """A backbone of two layers on flattened images."""

    def __init__(self, pixels: int, dim: int = 6):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, dim), nn.BatchNorm1d(dim), nn.Tanh())

    def forward(self, x):
        return self.layers(x)


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
    """A random image of (width, height) in a Pillow mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16)).save(path)
    else:
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode).save(path)
    return path


def class_folders(root: Path, classes: int = 2, each: int = 6, size: tuple[int, int] = (20, 16)) -> Path:
    """root/c0/0.png ...: images of classes that differ only by their folder."""
    for c in range(classes):
        for i in range(each):
            write_image(root / f"c{c}" / f"{i}.png", size=size, seed=100 * c + i)
    return root


BAD = ("cut.jpg", "cut.png", "empty.jpg", "text.jpg")


def spoil(folder: Path) -> list[Path]:
    """Adds files that are cut off, empty or no images at all."""
    paths = [folder / name for name in BAD]
    for path in paths[:2]:
        write_image(path, size=(90, 70))
        path.write_bytes(path.read_bytes()[:-500])
    paths[2].write_bytes(b"")
    paths[3].write_text("this is text")
    return paths


def start(argv, **kwargs):
    """python3 with these words, on one thread and without a GPU; its output in one stream."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)  # fmt: skip


def pile(folder):
    """Images without labels."""
    for i in range(6):
        write_image(folder / "pile" / f"{i}.png", seed=i)
    return str(folder / "pile")


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.size = max(self.size, out.numel() if isinstance(out, torch.Tensor) else 0)
        return out


def _serve(rank: int, world: int, store: str, pipe) -> None:
    """A gloo process that does what it is sent until it is sent nothing."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while task := pipe.recv():
        function, args = task
        try:
            pipe.send((True, function(rank, world, *args)))
        except Exception as e:  # whatever it is, the test must fail with it
            pipe.send((False, repr(e)))
    dist.destroy_process_group()


class Ranks:
    """`world` gloo processes, started once: importing torch takes them longer than any test."""

    def __init__(self, world: int, folder: str):
        context = mp.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, f"{folder}/{world}", theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function, *args) -> list:
        """function(rank, world, *args) on every process -> what each returned."""
        for pipe in self.pipes:
            pipe.send((function, args))
        results = [pipe.recv() for pipe in self.pipes]
        assert all(fine for fine, _ in results), [value for fine, value in results if not fine]
        return [value for _, value in results]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)
