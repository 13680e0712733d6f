"""Cluster ids of images in an .npz file, which step 1 of ClusterFit writes and step 2 reads."""

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import disk_errors_named, replaced_atomically

VERSION = 1  # of the file format
REMEDY = "make a new file, see docs/clusterfit.md"
ARRAYS = ("ids", "val_ids", "centroids", "pca_mean", "pca_axes")
MEMBERS = (*ARRAYS, "about", "version", "digest")
LARGEST = 2**32  # bytes of all arrays: 100 million images in 250,000 clusters of 2,048 coordinates
LONGEST_TEXT = 2**20  # bytes of `about`


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
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(path) as part, part.open("wb") as file:
        np.savez_compressed(file, version=VERSION, digest=np.array(_digest(content)), **content)


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
    """The arrays of an .npz by name; what they claim to be is checked before memory is allocated for them."""
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            members = archive.infolist()
            if not {member.filename for member in members} <= {f"{name}.npy" for name in MEMBERS}:
                raise UserError(f"{path} is not a clusters file; {REMEDY}")
            if len(members) > len(MEMBERS) or sum(member.file_size for member in members) > LARGEST:
                raise UserError(f"{path} claims to hold more than {LARGEST / 2**30:.0f} GiB of clusters; {REMEDY}")
            for member in members:
                _check_claim(archive, member)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except UserError:
        raise
    except Exception as e:  # truncated or no .npz at all: numpy and zipfile raise many kinds
        raise UserError(f"{path} is not a readable clusters file ({_one_line(e)}), perhaps truncated; {REMEDY}") from e


def _check_claim(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ValueError where the shape in an array's header is not that of the bytes behind it, or a text is long."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
        claimed, present = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if claimed != present and not dtype.hasobject:
        raise ValueError(f"{member.filename} claims {claimed} bytes and has {present}")
    if member.filename.removesuffix(".npy") not in ARRAYS and member.file_size > LONGEST_TEXT:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, more than {LONGEST_TEXT}")


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
