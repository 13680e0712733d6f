"""Features on disk: .npy files in data set order, of any size, written by any number of processes, resumable."""

import hashlib
import json
import zlib
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
from evaluation.shared_features import create_npy
from utils.batch import Batch
from utils.distributed import barrier, raise_together, rank, run_on_first_rank, world_size
from utils.errors import UserError
from utils.files import disk_errors_named, read_json, write_json

# A number per image, 0 where it is missing: an interrupted extraction resumes with the images that are missing, and a
# damaged file is noticed.
CHECKSUMS = "checksums"
KINDS = {"features": "f4", "labels": "i8", "indices": "i8", CHECKSUMS: "u4"}  # in the order in which files are created
DTYPES = {"float32": "f4", "float16": "f2"}
DEFAULT_DTYPE = "float32"
KEY_FILE = "cache_key.json"
REMEDY = "remove the folder to extract them again, or name another --features_dir"


def write_features(
    network: nn.Module, loader: EvalLoader, split: str, folder: Path, cache_key: dict[str, Any], dtype: str = "float32"
) -> Path:
    """Write features (N, D), labels (N,) and indices (N,) int64 as <folder>/<name>.npy; returns the folder.

    loader: evaluation batches that hold every image of the split once over all ranks. cache_key: what the features
    depend on (weights, data, size), kept beside them; a folder of other or damaged features is refused, and an
    incomplete one of these features is completed. dtype: of the features, a key of DTYPES.
    """
    run_on_first_rank(lambda: _prepare(network, loader, folder, cache_key | {"dtype": dtype}))
    files, error = _map(folder, loader.images, dtype), None
    todo = files[CHECKSUMS][:] == 0
    batches: Iterable[Batch] = loader if todo.any() else []  # where nothing is missing, no image is read
    try:
        with evaluation_mode(network), torch.no_grad():
            for batch in tqdm(batches, f"features, {split}", leave=False, disable=True if rank() else None):
                if todo[batch.index.cpu().numpy()].any():
                    _write_batch(files, folder, batch, network(batch.views[0]).float().cpu().numpy())
    except Exception as e:
        error = e
    barrier()  # a slow rank may be minutes behind, which a collective would not wait for
    raise_together(error)
    missing = int((np.load(_path(folder, CHECKSUMS)) == 0).sum())
    assert not missing, f"{missing} images were assigned to no process"
    return folder


def _write_batch(files: dict[str, NDArray], folder: Path, batch: Batch, features: NDArray[np.float32]) -> None:
    """Write the features (n, D) of a batch, its labels and indices, then its checksums, to the disk."""
    rows, stored = batch.index.cpu().numpy(), files["features"]
    if features.shape[1:] != stored.shape[1:]:
        raise _damaged(_path(folder, "features"), f"{stored.shape[1]} coordinates per image")
    largest = np.abs(features[np.isfinite(features)]).max(initial=0)
    if largest > np.finfo(stored.dtype).max:
        raise UserError(f"a feature of {largest:.4g} does not fit in {stored.dtype}; leave --features_dtype out")
    stored[rows], files["labels"][rows], files["indices"][rows] = features, batch.labels.cpu().numpy(), rows
    _flush(files, rows)


def read_features(folder: Path) -> NDArray[np.floating]:
    """(N, D) features that write_features has written, as a read-only memory map, which all ranks share."""
    features: NDArray[np.floating] = np.load(_path(folder, "features"), mmap_mode="r")
    return features


def digest_of_key(cache_key: dict[str, Any]) -> str:
    """A short hash of a cache key, for the name of a folder."""
    return hashlib.sha256(json.dumps(cache_key).encode()).hexdigest()[:10]


def _flush(files: dict[str, NDArray], rows: NDArray) -> None:
    """Write the rows to disk, and their checksums after that."""
    for name in ("features", "labels", "indices"):
        files[name].flush()  # type: ignore[attr-defined]  # a memory map
    files[CHECKSUMS][rows] = _checksums(files, rows)
    files[CHECKSUMS].flush()  # type: ignore[attr-defined]


def _checksums(files: dict[str, NDArray], rows: NDArray) -> NDArray[np.uint32]:
    """(n,) CRC-32 of feature, label and index of each row; never 0."""
    facts = np.stack([files["labels"][rows], files["indices"][rows]], axis=1)
    pairs = zip(files["features"][rows], facts, strict=True)
    return np.array([zlib.crc32(fact, zlib.crc32(feature)) or 1 for feature, fact in pairs], np.uint32)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _short(value: object) -> str:
    return " ".join(str(value).split())[:200]


def _damaged(path: Path, found: str) -> UserError:
    return UserError(f"{path} is damaged ({found}); {REMEDY}")


def _prepare(network: nn.Module, loader: EvalLoader, folder: Path, cache_key: dict[str, Any]) -> None:
    """Create the files of a split, or check those that exist."""
    n, dtype = loader.images, cache_key["dtype"]
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, cache_key)
    if _path(folder, CHECKSUMS).exists():
        _verify(_map(folder, n, dtype), folder)
    else:
        _create(folder, n, _width(network, loader), dtype)


def _kinds(dtype: str) -> dict[str, str]:
    return KINDS | {"features": DTYPES[dtype]}


def _create(folder: Path, n: int, width: int, dtype: str) -> None:
    """Create the files with their blocks on the disk; where there is no room, leave nothing that takes any."""
    try:
        for name, kind in _kinds(dtype).items():  # CHECKSUMS comes last: its presence means that all exist
            create_npy(_path(folder, name), (n, width) if name == "features" else (n,), kind)
    except UserError:
        for path in (*(_path(folder, name) for name in KINDS), folder / KEY_FILE):
            path.unlink(missing_ok=True)
        raise


def _map(folder: Path, n: int, dtype: str) -> dict[str, NDArray]:
    """The files as writable memory maps; one that is short, long, or of another kind is a UserError that names it."""
    files: dict[str, NDArray] = {}
    for name, kind in _kinds(dtype).items():
        path = _path(folder, name)
        try:
            # "r" first: with "r+" a file that is too short would be extended by zeros.
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            start, size = found.offset, path.stat().st_size
            whole = found.flags.c_contiguous and found.ndim == (2 if name == "features" else 1)
        except Exception as e:  # missing, truncated, another file altogether: numpy raises many kinds
            raise _damaged(path, _short(e)) from e
        if not whole or found.dtype != np.dtype(kind) or start + found.nbytes != size:
            raise _damaged(path, f"{found.dtype} of {found.shape} in {size} bytes")
        if len(found) != n:
            raise UserError(f"{path} holds {len(found)} images, not {n}; {REMEDY}")
        files[name] = np.load(path, mmap_mode="r+", allow_pickle=False)
    return files


def _verify(files: dict[str, NDArray], folder: Path, at_once: int = 2**12) -> None:
    """Compare the rows that were extracted with their checksums."""
    done = np.flatnonzero(files[CHECKSUMS])
    for first in range(0, len(done), at_once):
        rows = done[first : first + at_once]
        if len(wrong := rows[_checksums(files, rows) != files[CHECKSUMS][rows]]):
            raise _damaged(_path(folder, "features"), f"the checksum of image {wrong[0]} does not fit")


def _check_same(folder: Path, cache_key: dict[str, Any]) -> None:
    """Refuse a folder of other features; a new folder gets the cache key."""
    path = folder / KEY_FILE
    if path.exists():
        found = {"dtype": DEFAULT_DTYPE} | read_json(path)  # which files of before float16 do not name
        differing = [k for k in cache_key if found.get(k) != cache_key[k]]
        if differing:
            name = differing[0]
            raise UserError(
                f"{folder} holds features of another {name} ({_short(found.get(name))}, not {cache_key[name]}); "
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
