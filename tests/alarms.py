"""Alarms on broken and on healthy runs of the digits: which one, and after how many steps.

    python3 -m tests.alarms [METHOD or BROKEN RUN ...]

prints two tables: each broken run with its first alarm, and each method with its own optimizer and learning rate, in
three seeds, with none. Ends with status 1 where that is not so. `make test-slow` runs the same.
"""

import contextlib
import dataclasses
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import data.datasets
import main_contrastive
import methods.byol
import methods.simsiam
from data.images import ArrayImages
from data.pipelines.memory import DecodedViews
from methods import METHODS
from runs.alarms import FILE, Alarms
from tests.helpers.images import read
from utils.cluster_file import Clusters, write_clusters
from utils.queue import FeatureQueue
from utils.view_features import coordinate_std, mean_cosine

SEEDS = (0, 1, 2)
HEADS = {  # sizes that train on a CPU; optimizer, learning rate and schedule are the method's
    "barlow_twins": "--hidden_mlp 512 --proj_dim 512",
    "byol": "--hidden_mlp 512 --proj_dim 128 --pred_hidden_mlp 512",
    "clusterfit": "",
    "nnclr": "--hidden_mlp 512 --proj_dim 64 --pred_hidden_mlp 512 --queue_size 1024",
    "rotnet": "",
    "simclr": "--hidden_mlp 512 --proj_dim 64",
    "simsiam": "--hidden_mlp 512 --proj_dim 512 --pred_hidden_mlp 128",
}
HEALTHY = {**{name: name for name in METHODS}, "simclr --supervised": "simclr"}  # words -> method
STEPS = 220  # ten epochs of 22 steps
ADAMW = "--optimizer adamw --lr 0.002 --weight_decay 0.01"
EXTREMES: dict[str, Callable[[float, float], float]] = {
    "embedding_std": min, "rank_share": min, "uniformity": max, "nn_distinct": min, "chance": min, "file_order": max,
    "one_class": max, "gradient_ratio": max,
}  # fmt: skip  # the number of each limit at its worst


@dataclasses.dataclass
class Broken:
    """A run with a defect. words: method and flags. within: steps after which it must have been caught, 0: before."""

    words: str
    alarms: tuple[str, ...]
    within: int
    patch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def _loss_without_stop_gradient(p: list[Tensor], z: list[Tensor]) -> dict[str, Tensor]:
    return {"loss": -mean_cosine(p, z), "z_std": coordinate_std(z[0])}


def _constant(folder: Path, split: str) -> ArrayImages:
    images = read().splits()[split]
    return ArrayImages(torch.full_like(images.pixels, 128) if split == "train" else images.pixels, images.labels)


def _all_training_images(folder: Path, split: str) -> ArrayImages:
    images = read().splits()[split]
    leaked = read().train.pixels[: len(images)]
    return ArrayImages(images.pixels if split == "train" else leaked, images.labels)


def _digits_from(load: Callable[[Path, str], ArrayImages]) -> Callable[[], Any]:
    digits = dataclasses.replace(data.datasets.DATASETS["digits"], load=load)
    return lambda: mock.patch.dict(data.datasets.DATASETS, digits=digits)


def _order(order: np.ndarray) -> Callable[[], Any]:
    return lambda: mock.patch("data.pipelines.loaders.epoch_order", return_value=order)


def _first_rows(self: FeatureQueue, z: Tensor, k: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    """`FeatureQueue.nearest_several` that finds the first k rows for every query."""
    return torch.arange(k).expand(len(z), k), z @ self.rows[:k].T


@contextlib.contextmanager
def _starving() -> Iterator[None]:
    """A loader that takes three times as long as what happens between two of its batches."""
    render, ended = DecodedViews.render_into, [time.monotonic()]

    def slow(self: DecodedViews, *args: Any) -> Any:
        time.sleep(3 * (time.monotonic() - ended[0]))
        out = render(self, *args)
        ended[0] = time.monotonic()
        return out

    with mock.patch.object(DecodedViews, "render_into", slow):
        yield


COLLAPSE = ("collapse: standard deviation", "collapse: effective rank", "collapse: uniformity")
BROKEN = {
    "SimSiam without stop-gradient": Broken(
        f"simsiam {ADAMW}", COLLAPSE, 150,
        lambda: mock.patch.object(methods.simsiam, "simsiam_loss", _loss_without_stop_gradient)),
    "BYOL without predictor": Broken(
        "byol", COLLAPSE, 150, lambda: mock.patch.object(methods.byol, "predictor", return_value=nn.Identity())),
    "rate x 100, RotNet": Broken("rotnet --lr 10", (*COLLAPSE, "gradient explosion", "loss at chance"), 150),
    "rate x 100, ClusterFit": Broken("clusterfit --lr 10", (*COLLAPSE, "gradient explosion", "loss at chance"), 150),
    "rate x 100, BYOL": Broken("byol --lr 45", (*COLLAPSE, "gradient explosion"), 150),
    "constant images": Broken("simclr", ("images of one colour",), 0, _digits_from(_constant)),
    "constant images, unnoticed": Broken("simclr", ("loss at chance", *COLLAPSE), 150, lambda: _unnoticed()),
    "labels without meaning": Broken("clusterfit --shuffle_clusters", ("loss at chance",), 250),
    "images in file order": Broken("simclr", ("images in file order",), 60, _order(np.arange(1438))),
    "batches of one class": Broken(
        "simclr", ("batches of one class",), 60, _order(np.argsort(read().train.labels.numpy(), kind="stable"))),
    "nearest-neighbour collapse": Broken(
        "nnclr", ("nearest-neighbour collapse",), 60,
        lambda: mock.patch.object(FeatureQueue, "nearest_several", _first_rows)),
    "starving loader": Broken("simclr", ("starving device",), 120, _starving),
    "learning rate of zero": Broken("rotnet --lr_decay_steps 2 --lr_decay_factor 1e-9", ("learning rate zero",), 60),
    "validation images in the training set": Broken(
        "simclr", ("validation images among the training images",), 0, _digits_from(_all_training_images)),
    "queue longer than the data": Broken("nnclr --queue_size 98304", ("queue larger than the data set",), 0),
}  # fmt: skip


@contextlib.contextmanager
def _unnoticed() -> Iterator[None]:
    """Constant images that the look before training does not see."""
    with _digits_from(_constant)(), mock.patch("data.pipelines.base.image_alarms", return_value={}):
        yield


def clusters(folder: Path) -> Path:
    """A cluster file whose clusters are the ten digits."""
    train = read().train
    about = {"dataset": "digits", "images": len(train), "fingerprint": train.fingerprint()}
    none, path = np.zeros((0, 0), np.float32), folder / "clusters.npz"
    write_clusters(path, Clusters(train.labels.numpy(), np.arange(3), np.eye(10, dtype="f4"), none, none, about))
    return path


def run(words: str, folder: Path, seed: int = 0, steps: int = STEPS) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The alarms of a run of the digits, and its numbers at their worst, after the grace period."""
    name, *more = words.split()
    if name == "clusterfit":
        more += ["--cluster_file", str(clusters(folder))]
    worst: dict[str, float] = {}
    compare = Alarms._compare_with_limits

    def watched(self: Alarms, trainer: Any, numbers: dict[str, float]) -> None:
        for key in EXTREMES.keys() & numbers.keys() if self._step >= self.grace else ():
            if not math.isnan(numbers[key]):
                worst[key] = EXTREMES[key](worst.get(key, numbers[key]), numbers[key])
        compare(self, trainer, numbers)

    with mock.patch.object(Alarms, "_compare_with_limits", watched):
        main_contrastive.main([
            "digits", "test_resnet.r160_in1k", "--large_size", "16", "--batch_size", "64", "--precision", "32",
            "--num_workers", "0", "--knn_every", "0", "--steps", str(steps), "--seed", str(seed), "--method", name,
            *HEADS.get(name, "").split(), *more, "--output", str(folder), "--run_id", f"{time.time_ns()}",
        ])  # fmt: skip
    newest = max((p for p in folder.iterdir() if p.is_dir()), key=lambda p: p.name)
    path = newest / FILE
    return (json.loads(path.read_text())["alarms"] if path.exists() else []), worst


def run_broken(title: str, folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The alarms and the numbers of a broken run, as long as it takes to be caught."""
    case = BROKEN[title]
    with case.patch():
        return run(case.words, folder, steps=max(40, case.within + 40))


def caught(title: str, alarms: list[dict[str, Any]]) -> bool:
    """Whether one of the alarms that the run deserves was said in time."""
    case = BROKEN[title]
    return any(alarm["name"] in case.alarms and alarm["step"] <= case.within for alarm in alarms)


def main(only: list[str]) -> int:
    """Print both tables; the number of runs that were not as they should be."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name, mock.patch("evaluation.pictures.embedding", return_value=None):
        folder = Path(name)
        for title in [title for title in BROKEN if not only or title in only]:
            with contextlib.redirect_stdout(io.StringIO()):
                alarms, worst = run_broken(title, folder)
            said = "; ".join(f"{a['name']} at step {a['step']}" for a in alarms) or "none"
            wrong += not caught(title, alarms)
            print(f"| {title} | {said} | {BROKEN[title].within} | {_short(worst)} |", flush=True)
        for words in [words for words in HEALTHY if not only or words in only]:
            for seed in SEEDS:
                with contextlib.redirect_stdout(io.StringIO()):
                    alarms, worst = run(words, folder, seed)
                wrong += bool(alarms)
                said = "; ".join(f"{a['name']} at step {a['step']}" for a in alarms) or "none"
                print(f"| {words} | seed {seed} | {said} | {_short(worst)} |", flush=True)
    return wrong


def _short(worst: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.3g}" for key, value in sorted(worst.items()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]) > 0)
