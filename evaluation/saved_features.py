"""Features of an evaluation target on disk, for other programs and for clustering."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.feature_files import DEFAULT_DTYPE, DTYPES, digest_of_key, read_features, write_features
from evaluation.settings import Note, TrainingLabels
from evaluation.target import EvaluationTarget
from utils.optim import FlagGroup
from utils.scores import Score


@dataclass(frozen=True)
class FeaturesSettings:
    """features_dir: parent directory of the features; None for the run folder. dtype: a key of DTYPES."""

    features_dir: Path | None
    dtype: str = DEFAULT_DTYPE


def add_features_flags(group: FlagGroup) -> None:
    """Flags of every evaluation that keeps features on disk."""
    group.add_argument("--features_dir", metavar="DIR",
                       help="directory for extracted features; reuse it to resume an extraction")  # fmt: skip
    group.add_argument("--features_dtype", choices=list(DTYPES), default=DEFAULT_DTYPE,
                       help="type of features on disk; float16 takes half the space and keeps 3 digits")  # fmt: skip


def features_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> FeaturesSettings:
    """The settings that the flags ask for."""
    return FeaturesSettings(Path(flags.features_dir) if flags.features_dir else None, flags.features_dtype)


def features(target: EvaluationTarget, settings: FeaturesSettings) -> list[Score]:
    """Features, labels and indices of each split as .npy files; no score."""
    root = (settings.features_dir or target.folder / "features") / target.file_name
    for split in target.data.data.splits():
        write_split(target, split, root / split, settings.dtype)
    return []


def load_or_extract(
    target: EvaluationTarget, split: str, features_dir: Path | None, dtype: str = DEFAULT_DTYPE
) -> NDArray[np.floating]:
    """(N, D) features of a split as a read-only memory map; extracted now where they are not on disk.

    They lie below features_dir, else beside the weights, in a folder named after weights, layer, size, images and,
    where it is not float32, their type.
    """
    root = features_dir or target.info.default_output_dir / "features"
    key = cache_key(target, split) | ({} if dtype == DEFAULT_DTYPE else {"dtype": dtype})
    return read_features(write_split(target, split, root / f"{split}-{digest_of_key(key)}", dtype))


def cache_key(target: EvaluationTarget, split: str) -> dict[str, Any]:
    """Everything that the features of a split depend on, but for their type."""
    images = target.data.data.splits()[split]
    return {"weights": target.fingerprint, "layer": target.info.layer, "size": target.data.size,
            "dataset": target.dataset, "images": images.fingerprint()}  # fmt: skip


def write_split(target: EvaluationTarget, split: str, folder: Path, dtype: str) -> Path:
    """Write the features of a split to `folder`, as write_features does."""
    loader = target.data.eval_dataloader(split, target.device)
    return write_features(target.network, loader, split, folder, cache_key(target, split), dtype)
