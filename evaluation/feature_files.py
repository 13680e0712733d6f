"""Features on disk: .npy files in data set order, of any size, written by any number of processes, resumable."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from evaluation.features import evaluation_mode
from evaluation.interfaces import EvalLoader
from utils.batch import Batch
from utils.distributed import barrier, rank, world_size
from utils.errors import UserError
from utils.files import read_json, write_json

DONE = "done"  # one byte per image: an interrupted extraction resumes with the images that are missing
KEY_FILE = "cache_key.json"


def write_features(network: nn.Module, loader: EvalLoader, split: str, folder: Path, cache_key: dict[str, Any]) -> Path:
    """Write features (N, D) float32, labels (N,) and indices (N,) int64 as <folder>/<name>.npy; returns the folder.

    loader: evaluation batches that hold every image of the split once over all ranks. cache_key: what the features
    depend on (weights, data, size), kept beside them; a folder of other features is refused, and an incomplete one of
    these features is completed.
    """
    files = _open(network, loader, folder, cache_key)
    todo = ~files[DONE].astype(bool)
    batches: Iterable[Batch] = loader if todo.any() else []  # where nothing is missing, no image is read
    with evaluation_mode(network):
        for batch in tqdm(batches, f"features, {split}", leave=False, disable=True if rank() else None):
            rows = batch.index.cpu().numpy()
            if todo[rows].any():
                with torch.no_grad():
                    files["features"][rows] = network(batch.views[0]).float().cpu().numpy()
                files["labels"][rows], files["indices"][rows] = batch.labels.cpu().numpy(), rows
                _flush(files, rows)
    barrier()
    missing = int((np.load(_path(folder, DONE)) == 0).sum())
    assert not missing, f"{missing} images were assigned to no process"
    return folder


def read_features(folder: Path) -> NDArray[np.float32]:
    """(N, D) features that write_features has written, as a read-only memory map."""
    features: NDArray[np.float32] = np.load(_path(folder, "features"), mmap_mode="r")
    return features


def digest_of_key(cache_key: dict[str, Any]) -> str:
    """A short hash of a cache key, for the name of a folder."""
    return hashlib.sha256(json.dumps(cache_key).encode()).hexdigest()[:10]


def _flush(files: dict[str, NDArray], rows: NDArray) -> None:
    """Write the rows to disk, and mark them as done after that."""
    for name in ("features", "labels", "indices"):
        files[name].flush()  # type: ignore[attr-defined]  # a memory map
    files[DONE][rows] = 1
    files[DONE].flush()  # type: ignore[attr-defined]


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _open(network: nn.Module, loader: EvalLoader, folder: Path, cache_key: dict[str, Any]) -> dict[str, NDArray]:
    """The memory-mapped files of a split, which the first rank creates."""
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
            for name, (shape, kind) in shapes.items():  # DONE comes last: its presence means that all exist
                np.lib.format.open_memmap(_path(folder, name), "w+", kind, shape).flush()
    barrier()
    files: dict[str, NDArray] = {
        name: np.load(_path(folder, name), mmap_mode="r+") for name in ("features", "labels", "indices", DONE)
    }
    if len(files[DONE]) != n:
        raise UserError(
            f"{folder} holds features of {len(files[DONE])} images, not of {n}; name another --features_dir"
        )
    return files


def _check_same(folder: Path, cache_key: dict[str, Any]) -> None:
    """Refuse a folder of other features; a new folder gets the cache key."""
    path = folder / KEY_FILE
    if path.exists():
        found = read_json(path)
        differing = [k for k in cache_key if found.get(k) != cache_key[k]]
        if differing:
            name = differing[0]
            raise UserError(
                f"{folder} holds features of another {name} ({found.get(name)}, not {cache_key[name]}); "
                f"name another --features_dir"
            )
        return
    if any(folder.glob("*.npy")):
        raise UserError(f"{folder} holds .npy files of another program; name another --features_dir")
    write_json(path, cache_key | {"processes": world_size()})


@torch.no_grad()
def _width(network: nn.Module, loader: EvalLoader) -> int:
    """Coordinates of a feature, from the first image."""
    with evaluation_mode(network):
        return int(network(next(iter(loader)).views[0][:1]).shape[1])


def fingerprint(network: nn.Module) -> str:
    """A hash of every weight and buffer."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
