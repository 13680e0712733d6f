"""Features of an evaluation target on disk, for other programs and for clustering."""

import importlib.util
import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.feature_files import DEFAULT_DTYPE, DTYPES, digest_of_key, read_features, write_features
from evaluation.image_names import image_names
from evaluation.settings import Note, TrainingLabels
from evaluation.target import EvaluationTarget
from utils.distributed import rank_zero_print, run_on_first_rank
from utils.errors import UserError
from utils.files import replaced_atomically, write_text_atomically
from utils.optim import FlagGroup
from utils.scores import Score

FORMATS = ("npy", "parquet")
ROWS = 2**13  # of a group in a Parquet file


@dataclass(frozen=True)
class FeaturesSettings:
    """features_dir: parent directory of the features; None for the run folder. dtype: a key of DTYPES.

    format: one of FORMATS.
    """

    features_dir: Path | None
    dtype: str = DEFAULT_DTYPE
    format: str = FORMATS[0]


def add_features_flags(group: FlagGroup) -> None:
    """Flags of every evaluation that keeps features on disk."""
    group.add_argument("--features_dir", metavar="DIR",
                       help="directory for extracted features; reuse it to resume an extraction")  # fmt: skip
    group.add_argument("--features_dtype", choices=list(DTYPES), default=DEFAULT_DTYPE,
                       help="type of features on disk; float16 takes half the space and keeps 3 digits")  # fmt: skip


def add_format_flag(group: FlagGroup) -> None:
    """The flag of the evaluation whose features are for other programs."""
    group.add_argument("--features_format", choices=FORMATS, default=FORMATS[0],
                       help="npy: a folder of arrays for each split, with paths.txt; parquet: besides, one "
                       "features.parquet with the columns path, split, label and vector")  # fmt: skip


def features_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> FeaturesSettings:
    """The settings that the flags ask for; a format whose library is missing is refused."""
    if flags.features_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError("--features_format parquet needs pyarrow: pip install -r requirements-parquet.txt")
    folder = Path(flags.features_dir) if flags.features_dir else None
    return FeaturesSettings(folder, flags.features_dtype, flags.features_format)


def features(target: EvaluationTarget, settings: FeaturesSettings) -> list[Score]:
    """Features, labels, indices and paths of each split as files for other programs; no score."""
    root = (settings.features_dir or target.folder / "features") / target.file_name
    for split, images in target.data.data.splits().items():
        folder = write_split(target, split, root / split, settings.dtype)
        lines = "".join(f"{name}\n" for name in image_names(images, split))
        run_on_first_rank(lambda: write_text_atomically(folder / "paths.txt", lines))  # noqa: B023
        rank_zero_print(f"  {folder}: {len(images):,} images")
    if settings.format == "parquet":
        path = root / "features.parquet"
        run_on_first_rank(lambda: _write_parquet(path, root, target))
        rank_zero_print(f"  {path}")
    return []


def _write_parquet(path: Path, root: Path, target: EvaluationTarget) -> None:
    """Write the splits below root as one table: path, split, label (null where unknown) and vector, a list of D.

    The names of the classes are in the metadata of the schema, as JSON under "classes".
    """
    import pyarrow as pa
    from pyarrow import parquet

    splits = {split: np.load(root / split / "features.npy", mmap_mode="r") for split in target.data.data.splits()}
    width, kind = splits["train"].shape[1], pa.from_numpy_dtype(splits["train"].dtype)
    columns = [("path", pa.string()), ("split", pa.string()), ("label", pa.int64()), ("vector", pa.list_(kind, width))]
    schema = pa.schema(columns, metadata={"classes": json.dumps(target.data.data.train.classes)})
    with replaced_atomically(path) as part, parquet.ParquetWriter(part, schema) as writer:
        for split, vectors in splits.items():
            images = target.data.data.splits()[split]
            names, labels = image_names(images, split), images.labels.numpy()
            for first in range(0, len(vectors), ROWS):
                rows = slice(first, first + ROWS)
                vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors[rows].ravel()), width)
                label = pa.array(labels[rows], mask=labels[rows] < 0)
                n = len(vectors[rows])
                writer.write_table(
                    pa.table([pa.array(names[rows]), pa.array([split] * n), label, vector], schema=schema)
                )


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
