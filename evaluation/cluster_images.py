"""Step 1 of ClusterFit (Yan et al., 2020, arXiv:1912.03330, sec. 3): features of a pretrained network, clustered."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evaluation import pictures
from evaluation.feature_files import load_or_extract
from evaluation.kmeans import KMeans, assign, cluster_report, kmeans, nmi, purity
from evaluation.table import Numbers
from utils.cluster_file import Clusters, write_clusters
from utils.distributed import barrier, rank
from utils.errors import UserError
from utils.hardware import host_memory
from utils.provenance import provenance

SHARE = 0.4  # of the memory that the rows of k-means may take
FEWEST, MOST = 20, 400  # images per cluster, on average, between which clusters are neither noise nor classes


def cluster(subject: Any) -> Numbers:
    """Clusters of the training images in --clusters, what they are like on the screen, and some of them as PNG.

    Features are taken once, by all ranks, and kept; the first rank clusters them.
    """
    features = {split: load_or_extract(subject, split) for split in subject.data.data.splits()}
    numbers: Numbers = {}
    if rank() == 0:
        numbers = _cluster(subject, features)
    barrier()
    return numbers


def check_clusters(args: Any, images: int) -> None:
    """What can be refused before features are taken."""
    path = Path(args.clusters)
    if path.exists():
        raise UserError(f"--clusters {path} exists and is not overwritten; name another file")
    if path.suffix != ".npz":
        raise UserError(f"--clusters {path} must end in .npz")
    if not 2 <= args.num_clusters <= images:
        raise UserError(
            f"--num_clusters {args.num_clusters}: from 2 to {images}, the number of training images, needed"
        )
    if args.cluster_sample and args.cluster_sample < args.num_clusters:
        raise UserError(
            f"--cluster_sample {args.cluster_sample}: k-means of {args.num_clusters} clusters needs as many rows; "
            f"raise it"
        )
    if args.pca and args.cluster_sample and args.pca > args.cluster_sample:
        raise UserError(f"--pca {args.pca} needs as many rows as axes; raise --cluster_sample {args.cluster_sample}")


def _cluster(subject: Any, features: dict[str, NDArray]) -> Numbers:
    args, data = subject.args, subject.data.data
    rows = _sample(features["train"], args)
    space = Space.of(features["train"], rows, args.pca)
    points = {split: Points(x, space) for split, x in features.items()}
    seen = torch.from_numpy(np.concatenate([points["train"][part] for part in _parts(rows)]))
    found = kmeans(_on(subject.device, seen), args.num_clusters, args.cluster_iterations,
                   args.cluster_seed, args.cluster_backend, subject.device, title="k-means")  # fmt: skip
    ids, distance = assign(points["train"], found.centroids, subject.device)
    val = assign(points["val"], found.centroids, subject.device)[0] if "val" in points else ids[:0]
    about = _about(subject, len(rows), found)
    written = Clusters(ids.numpy(), val.numpy(), found.centroids.numpy(), space.mean, space.axes, about)
    write_clusters(Path(args.clusters), written)
    pictures.montage(subject.folder / f"{subject.short}_clusters.png", ids, distance, data.train)
    numbers = cluster_report(ids, args.num_clusters) | _agreement(ids, data.train.labels)
    _tell(args, len(ids), len(rows), found, numbers)
    return {name: numbers[name] for name in ("NMI", "purity") if name in numbers}


def _agreement(ids: Tensor, labels: Tensor) -> Numbers:
    return {"NMI": nmi(ids, labels), "purity": 100 * purity(ids, labels)} if bool((labels >= 0).any()) else {}


def _tell(args: Any, n: int, sampled: int, found: KMeans, numbers: Numbers) -> None:
    k, rows = args.num_clusters, f"all {n:,}" if sampled == n else f"a sample of {sampled:,} of {n:,}"
    first, *_, last = found.objective
    lines = {
        "k-means": f"{len(found.objective) - 1} iterations on {rows} images, mean squared distance {first:.4g} -> "
        f"{last:.4g}, {found.reseeded} empty clusters put elsewhere",
        "images": f"{numbers['smallest']:.0f} in the smallest of {k} clusters, {numbers['median']:g} in the median "
        f"one, {numbers['largest']:.0f} in the largest; {numbers['empty']:.0f} clusters are empty",
    }
    if "NMI" in numbers:
        lines["labels"] = f"NMI {numbers['NMI']:.3f}, purity {numbers['purity']:.1f} %"
    few, many = max(2, math.ceil(n / MOST)), n // FEWEST
    if not few <= k <= many:
        why = "few images in each, much of them noise" if k > many else "many images in each, which say little"
        lines["advice"] = f"{k} clusters of {n:,} images leave {why}; {few} to {many} are usual"
    lines["file"] = args.clusters
    print("\n".join(f"  {name:<14} {text}" for name, text in lines.items()))


def _about(subject: Any, sampled: int, found: KMeans) -> dict[str, Any]:
    args, images = subject.args, subject.data.data.train
    settings = ("num_clusters", "cluster_iterations", "cluster_seed", "cluster_backend", "pca", "layer", "backbone")
    return {
        "dataset": args.dataset, "fingerprint": images.fingerprint(), "images": len(images), "size": subject.data.size,
        "weights": args.source, "weights_fingerprint": subject.fingerprint, "transform": "resize, centre crop",
        "sample": sampled, "iterations": len(found.objective) - 1, "objective": found.objective[-1],
    } | {name: getattr(args, name) for name in settings} | provenance()  # fmt: skip


def _sample(features: NDArray, args: Any) -> NDArray:
    """Sorted rows that k-means sees: --cluster_sample of them, else as many as fit into memory."""
    n, width = len(features), args.pca or features.shape[1]
    count = min(n, args.cluster_sample or int(SHARE * host_memory()) // (4 * width))
    if count < args.num_clusters:
        raise UserError(
            f"{count} rows of features fit into memory, --num_clusters {args.num_clusters} needs as many; add --pca 256"
        )
    order = np.random.default_rng(args.cluster_seed).permutation(n)
    return np.sort(order[:count])


def _parts(rows: NDArray) -> list[NDArray]:
    """In turn, so that no more than a part is in memory under two forms."""
    return np.array_split(rows, math.ceil(len(rows) / 2**14))


def _on(device: torch.device, rows: Tensor) -> Tensor:
    """On the device where it leaves room there; else k-means takes it there in parts."""
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return rows.to(device) if rows.nbytes < SHARE * room else rows


class Space:
    """Where clusters lie: features of unit length, as they are, or less their mean on the axes of largest variance."""

    def __init__(self, mean: NDArray, axes: NDArray):
        self.mean, self.axes = mean, axes  # (F,), (F, D) float32; empty for features as they are

    @classmethod
    def of(cls, features: NDArray, rows: NDArray, axes: int | None) -> "Space":
        """By PCA of some rows, in float64, where axes are asked for."""
        plain = cls(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
        if not axes:
            return plain
        most = min(features.shape[1], len(rows))
        if axes > most:
            raise UserError(
                f"--pca {axes} of features with {features.shape[1]} coordinates and {len(rows)} rows; at most {most}"
            )
        points, width = Points(features, plain), features.shape[1]
        total, gram = np.zeros(width), np.zeros((width, width))
        for part in _parts(rows):
            x = points[part].astype(np.float64)
            total += x.sum(axis=0)
            gram += x.T @ x
        mean = total / len(rows)
        _, vectors = np.linalg.eigh(gram / len(rows) - np.outer(mean, mean))
        return cls(mean.astype(np.float32), vectors[:, ::-1][:, :axes].astype(np.float32).copy())

    def __call__(self, x: NDArray) -> NDArray:
        unit = F.normalize(torch.from_numpy(x), dim=1)
        return ((unit - torch.from_numpy(self.mean)) @ torch.from_numpy(self.axes) if self.axes.size else unit).numpy()


class Points:
    """Rows of features, which may lie on disk, as points of a space, made when they are asked for."""

    ndim = 2

    def __init__(self, features: NDArray, space: Space):
        self.features, self.space = features, space
        self.shape = (len(features), space.axes.shape[1] if space.axes.size else features.shape[1])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, at: Any) -> NDArray:
        return self.space(np.array(self.features[at], dtype=np.float32))
