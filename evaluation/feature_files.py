"""Features on disk for others: .npy files in data set order, of any size, written by any number of processes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from utils.distributed import barrier, rank, world_size
from utils.errors import UserError

DONE = "done"  # one byte per image: a run that was interrupted goes on where it stood


def load_or_extract(subject: Any, split: str) -> NDArray:
    """(N, D) features of a split on disk, read-only, taken now where they are not there.

    They lie below --features_dir, else beside the weights, in a folder that belongs to weights, layer, size and images.
    """
    args = subject.args
    key = hashlib.sha256(json.dumps(cache_key(subject, split)).encode()).hexdigest()[:10]
    folder = write_split(subject, split, Path(args.features_dir or Path(args.home) / "features") / f"{split}-{key}")
    return np.load(_path(folder, "features"), mmap_mode="r")


def cache_key(subject: Any, split: str) -> dict[str, Any]:
    """What the features of a split depend on."""
    images = subject.data.data.splits()[split]
    return {"weights": subject.fingerprint, "layer": subject.args.layer, "size": subject.data.size,
            "dataset": subject.args.dataset, "images": images.fingerprint()}  # fmt: skip


def write_split(subject: Any, split: str, folder: Path) -> Path:
    """`write_features` of a split of a subject."""
    loader = subject.data.eval_dataloader(split, subject.device)
    return write_features(subject.network, loader, split, folder, cache_key(subject, split))


def write_features(network: nn.Module, loader: Any, split: str, folder: Path, cache_key: dict[str, Any]) -> Path:
    """features (N, D) float32, labels (N,) and indices (N,) int64 as <folder>/<name>.npy; returns the folder.

    loader: clean batches that hold every image of the split once over all ranks. cache_key: what the features depend on
    (weights, data, size), kept beside them; a folder of other features is refused, one of the same is completed.
    """
    files = _open(network, loader, folder, cache_key)
    todo = ~files[DONE].astype(bool)
    network.eval()
    left = loader if todo.any() else []  # where nothing is missing, no image is read
    for batch in tqdm(left, f"features, {split}", leave=False, disable=True if rank() else None):
        at = batch.index.cpu().numpy()
        if not todo[at].any():
            continue
        with torch.no_grad():
            files["features"][at] = network(batch.views[0]).float().cpu().numpy()
        files["labels"][at], files["indices"][at] = batch.labels.cpu().numpy(), at
        for name in ("features", "labels", "indices"):
            files[name].flush()  # before what says that they are there
        files[DONE][at] = 1
        files[DONE].flush()
    barrier()
    missing = int((np.load(_path(folder, DONE)) == 0).sum())
    assert not missing, f"{missing} images were dealt out to no process"
    return folder


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _open(network: nn.Module, loader: Any, folder: Path, cache_key: dict[str, Any]) -> dict[str, Any]:
    """The memory-mapped files of a split; the first rank makes them."""
    n = loader.images
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _check_same(folder, cache_key)
        if not _path(folder, DONE).exists():
            width = _width(network, loader)
            shapes = {
                "features": ((n, width), "f4"),
                "labels": ((n,), "i8"),
                "indices": ((n,), "i8"),
                DONE: ((n,), "u1"),
            }
            for name, (shape, kind) in shapes.items():  # the one that says what is there comes last
                np.lib.format.open_memmap(_path(folder, name), "w+", kind, shape).flush()
    barrier()
    files: dict[str, Any] = {
        name: np.load(_path(folder, name), mmap_mode="r+") for name in ("features", "labels", "indices", DONE)
    }
    if len(files[DONE]) != n:
        raise UserError(
            f"{folder} holds features of {len(files[DONE])} images, not of {n}; name another --features_dir"
        )
    return files


def _check_same(folder: Path, cache_key: dict[str, Any]) -> None:
    path = folder / "made_of.json"
    if path.exists():
        before = json.loads(path.read_text())
        other = [k for k in cache_key if before.get(k) != cache_key[k]]
        if other:
            raise UserError(
                f"{folder} holds features of another {other[0]} ({before.get(other[0])}, not {cache_key[other[0]]}); "
                f"name another --features_dir"
            )
        return
    if any(folder.glob("*.npy")):
        raise UserError(f"{folder} holds .npy files that are not ours; name another --features_dir")
    path.write_text(json.dumps(cache_key | {"processes": world_size()}, indent=2) + "\n")


@torch.no_grad()
def _width(network: nn.Module, loader: Any) -> int:
    return int(network.eval()(next(iter(loader)).views[0][:1]).shape[1])


def fingerprint(network: nn.Module) -> str:
    """Of every weight and buffer."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
