"""Step 1 of ClusterFit (Yan et al., 2020, arXiv:1912.03330, sec. 3): cluster the features of a pretrained network."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation import pictures
from evaluation.captions import add_captions
from evaluation.feature_files import DEFAULT_DTYPE
from evaluation.feature_transform import FeatureTransform, TransformedFeatures
from evaluation.kmeans import cluster_report, kmeans, nmi, purity
from evaluation.saved_features import load_or_extract
from evaluation.settings import Note, TrainingLabels
from evaluation.target import EvaluationTarget
from utils.arg_types import count, positive_int
from utils.cluster_file import Clusters, write_clusters
from utils.distributed import broadcast_str, run_on_first_rank, sum_over_ranks, world_size
from utils.errors import UserError
from utils.hardware import machine_memory
from utils.kmeans import KMeans, assign
from utils.optim import FlagGroup
from utils.provenance import provenance
from utils.scores import Score
from utils.shares import Rows, RowsInMemory

MEMORY_SHARE = 0.4  # of the memory that the rows of k-means may take
FEWEST, MOST = 20, 400  # images per cluster, on average, between which clusters are neither noise nor classes


@dataclass(frozen=True)
class ClusterSettings:
    """k: number of clusters. output: a new .npz file. sample: rows that k-means sees, None for as many as fit in
    memory. pca: principal components to keep, None for the features themselves. features_dir: None for the directory
    of the weights. features_dtype: type of the features on disk.
    """

    k: int
    output: Path
    iterations: int
    seed: int
    backend: str
    sample: int | None
    pca: int | None
    features_dir: Path | None
    features_dtype: str = DEFAULT_DTYPE


def add_cluster_flags(group: FlagGroup) -> None:
    """Flags of clustering."""
    group.add_argument("--num_clusters", type=positive_int, metavar="K",
                       help="number of clusters; N/400 to N/20 are usual for N images")  # fmt: skip
    group.add_argument("--cluster_output", metavar="FILE", help="new .npz file for the cluster ids")
    group.add_argument("--cluster_iterations", type=positive_int, default=50, help="most iterations of k-means")
    group.add_argument("--cluster_seed", type=count, default=0, help="random seed of k-means")
    group.add_argument("--cluster_backend", choices=["faiss", "torch"], default="torch", help="k-means implementation")
    group.add_argument("--cluster_sample", type=positive_int, metavar="ROWS",
                       help="images that k-means sees (default: all, or as many as fit in memory)")  # fmt: skip
    group.add_argument("--pca", type=positive_int, metavar="D", help="reduce to D principal components first")


def cluster_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> ClusterSettings:
    """The settings that the flags ask for; impossible ones are refused before features are extracted."""
    features_dir = Path(flags.features_dir) if flags.features_dir else None
    settings = ClusterSettings(
        k=flags.num_clusters,
        output=Path(flags.cluster_output),
        iterations=flags.cluster_iterations,
        seed=flags.cluster_seed,
        backend=flags.cluster_backend,
        sample=flags.cluster_sample,
        pca=flags.pca,
        features_dir=features_dir,
        features_dtype=flags.features_dtype,
    )
    check_cluster_settings(settings, labels.images)
    return settings


def check_cluster_settings(settings: ClusterSettings, images: int) -> None:
    """Refuse settings that cannot work for this number of training images."""
    if settings.output.exists():
        raise UserError(f"--cluster_output {settings.output} exists and is not overwritten; name another file")
    if settings.output.suffix != ".npz":
        raise UserError(f"--cluster_output {settings.output} must end in .npz")
    if not 2 <= settings.k <= images:
        raise UserError(f"--num_clusters {settings.k}: needs 2 to {images}, the number of training images; change it")
    if settings.sample and settings.sample < settings.k:
        raise UserError(
            f"--cluster_sample {settings.sample}: k-means of {settings.k} clusters needs as many rows; raise it"
        )
    if settings.pca and settings.sample and settings.pca > settings.sample:
        raise UserError(
            f"--pca {settings.pca} needs as many rows as components; raise --cluster_sample {settings.sample}"
        )


def cluster(target: EvaluationTarget, settings: ClusterSettings) -> list[Score]:
    """Cluster the training images into a file, print and draw the clusters, and compare them with labels.

    Features are extracted once, kept on disk and clustered by all ranks; the first rank writes the file.
    """
    splits = target.data.data.splits()
    features = {
        split: load_or_extract(target, split, settings.features_dir, settings.features_dtype) for split in splits
    }
    rows = sample_rows(features["train"], settings)
    transform = _fit(features["train"], rows, settings, target.device)
    transformed = {split: TransformedFeatures(x, transform) for split, x in features.items()}
    sample: Rows = SampledRows(transformed["train"], rows)
    if settings.backend != "faiss":  # which reads all rows, on the first rank
        sample = RowsInMemory(sample, _device_with_room(sample, target.device))
    result = kmeans(sample, settings.k, settings.iterations, settings.seed, settings.backend, target.device,
                    title="k-means")  # fmt: skip
    del sample
    ids, distance = assign(transformed["train"], result.centroids, target.device)
    val_ids = assign(transformed["val"], result.centroids, target.device)[0] if "val" in transformed else ids[:0]

    def report() -> list[Score]:
        about, centroids = _about(target, settings, len(rows), result), result.centroids.numpy()
        clusters = Clusters(ids.numpy(), val_ids.numpy(), centroids, transform.mean, transform.axes, about)
        write_clusters(settings.output, clusters)
        train = target.data.data.train
        picture = target.folder / f"{target.file_name}_clusters.png"
        pictures.montage(picture, ids, distance, train)
        add_captions([picture], target.info.label)
        scores = _label_scores(ids, train.labels)
        print(describe(settings, len(ids), len(rows), result, cluster_report(ids, settings.k), scores))
        return scores

    return run_on_first_rank(report) or []


def _fit(
    features: NDArray[np.floating], rows: NDArray[np.int64], settings: ClusterSettings, device: torch.device
) -> FeatureTransform:
    """The transform that the first rank fits, on every rank."""
    if not settings.pca:
        return FeatureTransform.fit(features, rows, None)
    fitted = run_on_first_rank(lambda: FeatureTransform.fit(features, rows, settings.pca))
    shapes = ((features.shape[1],), (features.shape[1], settings.pca))
    own = (fitted.mean, fitted.axes) if fitted else tuple(np.zeros(shape, np.float32) for shape in shapes)
    mean, axes = (sum_over_ranks(torch.from_numpy(x).to(device)).cpu().numpy() for x in own)
    return FeatureTransform(mean, axes)


class SampledRows:
    """Some rows of features, which are read when they are indexed."""

    ndim = 2

    def __init__(self, x: TransformedFeatures, rows: NDArray[np.int64]):
        self.x, self.rows, self.shape = x, rows, (len(rows), x.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return self.x[self.rows[at]]


def _label_scores(ids: Tensor, labels: Tensor) -> list[Score]:
    """NMI and purity, where there are labels."""
    if not bool((labels >= 0).any()):
        return []
    return [Score("cluster/nmi", nmi(ids, labels), unit=""), Score("cluster/purity", 100 * purity(ids, labels))]


def describe(
    settings: ClusterSettings, n: int, sampled: int, result: KMeans, sizes: Mapping[str, float], scores: list[Score]
) -> str:
    """The result as printed, a line per topic. sizes: the numbers of cluster_report."""
    k, rows = settings.k, f"all {n:,}" if sampled == n else f"a sample of {sampled:,} of {n:,}"
    first, *_, last = result.objective
    lines = {
        "k-means": f"{len(result.objective) - 1} iterations on {rows} images, mean squared distance {first:.4g} -> "
        f"{last:.4g}, {result.reseeded} empty clusters re-seeded",
        "images": f"{sizes['smallest']:.0f} in the smallest of {k} clusters, {sizes['median']:g} in the median one, "
        f"{sizes['largest']:.0f} in the largest; {sizes['empty']:.0f} clusters are empty",
    }
    numbers = {score.name: score.value for score in scores}
    if numbers:
        lines["labels"] = f"NMI {numbers['cluster/nmi']:.3f}, purity {numbers['cluster/purity']:.1f} %"
    few, many = max(2, math.ceil(n / MOST)), n // FEWEST
    if not few <= k <= many:
        why = "few images in each, much of them noise" if k > many else "many images in each, which say little"
        lines["advice"] = f"{k} clusters of {n:,} images leave {why}; {few} to {many} are usual"
    lines["file"] = str(settings.output)
    return "\n".join(f"  {name:<14} {text}" for name, text in lines.items())


def _about(target: EvaluationTarget, settings: ClusterSettings, sampled: int, result: KMeans) -> dict[str, Any]:
    """Facts for the file: the images, the weights, the settings and the program."""
    images, info = target.data.data.train, target.info
    return {
        "dataset": target.dataset, "fingerprint": images.fingerprint(), "images": len(images),
        "size": target.data.size, "weights": info.weights, "weights_fingerprint": target.fingerprint,
        "backbone": info.backbone, "layer": info.layer, "transform": "resize, center crop", "sample": sampled,
        "iterations": len(result.objective) - 1, "objective": result.objective[-1], "num_clusters": settings.k,
        "cluster_iterations": settings.iterations, "cluster_seed": settings.seed, "cluster_backend": settings.backend,
        "pca": settings.pca,
    } | provenance()  # fmt: skip


def sample_rows(features: NDArray[np.floating], settings: ClusterSettings) -> NDArray[np.int64]:
    """Sorted rows that k-means sees, the same on every rank: as many as asked for, else as many as fit in memory."""
    n, width = len(features), settings.pca or features.shape[1]
    room = int(broadcast_str(str(machine_memory())))  # that of the first machine
    rows = min(n, settings.sample or int(MEMORY_SHARE * room) // (4 * width))
    if rows < settings.k:
        raise UserError(
            f"{rows} rows of features fit in memory, --num_clusters {settings.k} needs as many; add --pca 256"
        )
    order = np.random.default_rng(settings.seed).permutation(n)
    return np.sort(order[:rows])


def _device_with_room(sample: Rows, device: torch.device) -> torch.device:
    """A GPU with enough free memory for this rank's share; else the CPU, from which k-means moves rows in parts."""
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    share = 4 * len(sample) * sample.shape[1] / world_size()
    return device if share < MEMORY_SHARE * room else torch.device("cpu")
