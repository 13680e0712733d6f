"""Cluster ids of images in an .npz file, which step 1 of ClusterFit writes and step 2 reads."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError

VERSION = 1  # of the file format
REMEDY = "make a new file, see docs/clusterfit.md"
ARRAYS = ("ids", "val_ids", "centroids", "pca_mean", "pca_axes")


class Clusters(NamedTuple):
    """Cluster ids of images, the centroids, and facts about both.

    ids: (N,) int64 of the training images in data set order. val_ids: (M,) of the validation images, by the nearest
    of the same centroids. centroids: (K, D) float32. pca_mean (F,), pca_axes (F, D): the clustered points are features
    of unit length, less the mean, times the axes; both are empty where no components were taken. about: plain values,
    among them `dataset`, `images` and `fingerprint` of the training images.
    """

    ids: NDArray
    val_ids: NDArray
    centroids: NDArray
    pca_mean: NDArray
    pca_axes: NDArray
    about: Mapping[str, Any]


def write_clusters(path: Path, clusters: Clusters) -> None:
    """Write a compressed .npz of plain arrays atomically, with a digest of its content."""
    content = {name: getattr(clusters, name) for name in ARRAYS} | {"about": np.array(json.dumps(dict(clusters.about)))}
    part = path.with_name(f".{path.name}.part.npz")  # numpy appends .npz to every other name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(part, version=VERSION, digest=np.array(_digest(content)), **content)
        os.replace(part, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"cannot write {path} ({e.strerror}); name another file") from e


def read_clusters(path: Path) -> Clusters:
    """Read a clusters file; a truncated, edited or impossible one is refused."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; {REMEDY}")
    content = _read_arrays(path)
    version, digest = content.pop("version", None), content.pop("digest", None)
    if version is None or digest is None:
        raise UserError(f"{path} is not a clusters file; {REMEDY}")
    if str(version) != str(VERSION):
        raise UserError(f"{path} has format version {_one_line(version)}, this program reads {VERSION}; {REMEDY}")
    if set(content) != {*ARRAYS, "about"} or str(digest) != _digest(content):
        raise UserError(f"{path} was changed after it was written; {REMEDY}")
    clusters = Clusters(**{name: content[name] for name in ARRAYS}, about=_facts(path, content["about"]))
    for ids in (clusters.ids, clusters.val_ids):
        if ids.ndim != 1 or ids.dtype.kind != "i" or clusters.centroids.ndim != 2:
            raise UserError(f"{path} has no list of cluster ids; {REMEDY}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(clusters.centroids):
            k = len(clusters.centroids)
            raise UserError(f"{path} has ids from {ids.min()} to {ids.max()}, needs 0 to {k - 1}; {REMEDY}")
    return clusters


def _read_arrays(path: Path) -> dict[str, NDArray]:
    """The arrays of an .npz by name."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as e:  # truncated or no .npz at all: numpy and zipfile raise many kinds
        raise UserError(f"{path} is not a readable clusters file ({_one_line(e)}), perhaps truncated; {REMEDY}") from e


def _facts(path: Path, about: NDArray) -> dict[str, Any]:
    """The facts of a clusters file; those that `check_same_images` compares must be there."""
    try:
        facts = json.loads(str(about))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not {"dataset", "images", "fingerprint"} <= set(facts):
        raise UserError(f"{path} does not say whose clusters it holds; {REMEDY}")
    return facts


def _one_line(what: object) -> str:
    return " ".join(str(what).split())[:200]


def _digest(content: Mapping[str, NDArray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(content.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_same_images(path: str, about: Mapping[str, Any], dataset: str, images: int, fingerprint: str) -> None:
    """Refuse a clusters file of other training images than these. about: the facts of the file."""
    if about["dataset"] != dataset:
        raise UserError(f"{path} has the clusters of {about['dataset']}, not of {dataset}; {REMEDY}")
    if about["images"] != images:
        count = about["images"]
        stated = f"{count:,}" if isinstance(count, int) else str(count)  # a forged file may hold anything
        raise UserError(f"{path} has the clusters of {stated} images, {dataset} has {images:,} here; {REMEDY}")
    if about["fingerprint"] != fingerprint:
        raise UserError(f"{path} has the clusters of other images of {dataset} (files, order or labels); {REMEDY}")
