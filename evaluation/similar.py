"""Nearest training images of images that a user names: a picture and a list of paths."""

import csv
import io
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from evaluation.feature_files import DEFAULT_DTYPE
from evaluation.features import evaluation_mode
from evaluation.image_names import caption, image_name
from evaluation.knn import neighbours
from evaluation.pictures import neighbour_grid
from evaluation.saved_features import load_or_extract
from evaluation.settings import Note, TrainingLabels
from evaluation.target import EvaluationTarget
from utils.arg_types import positive_int
from utils.distributed import run_on_first_rank
from utils.errors import UserError
from utils.files import typed_path, write_text_atomically
from utils.names import escaped, shown
from utils.optim import FlagGroup
from utils.scores import Score

DRAWN = 20  # queries at most in the picture; the list has all
AT_ONCE = 64  # queries that are decoded together


@dataclass(frozen=True)
class SimilarSettings:
    """images: files of the queries. k: neighbours of each. features_dir, dtype: where and how features are kept."""

    images: tuple[Path, ...]
    k: int
    features_dir: Path | None = None
    dtype: str = DEFAULT_DTYPE


def add_similar_flags(group: FlagGroup) -> None:
    """Flags of the search for similar images."""
    group.add_argument("--similar", nargs="+", metavar="IMAGE",
                       help="image files whose nearest training images are written as a picture and a list of paths; "
                       "alone, it computes nothing else")  # fmt: skip
    group.add_argument("--similar_k", type=positive_int, default=8, help="nearest images of each")


def similar_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> SimilarSettings:
    """The settings that the flags ask for; a file that does not exist is refused."""
    images = tuple(typed_path(name) for name in flags.similar)
    for image in images:
        if not image.is_file():
            kind = "is a folder" if image.is_dir() else "does not exist"
            raise UserError(f"--similar {shown(image)}: it {kind}; name image files")
    folder = Path(flags.features_dir) if flags.features_dir else None
    return SimilarSettings(images, min(flags.similar_k, labels.images), folder, flags.features_dtype)


def similar(target: EvaluationTarget, settings: SimilarSettings) -> list[Score]:
    """The training images that are nearest to each query by cosine: <title>_similar.png and .csv; no score.

    The search compares a query with every training image. Features of the training images that are on disk are used.
    """
    run_on_first_rank(lambda: _check_readable(target, settings.images))  # before the features of all images
    bank = load_or_extract(target, "train", settings.features_dir, settings.dtype)

    def search() -> None:
        queries = _features(target, settings.images)
        cosine, rows = neighbours(torch.from_numpy(np.array(bank, np.float32)), queries, settings.k, target.device)
        train = target.data.data.train
        found = [[image_name(train, "train", row) for row in line] for line in rows.tolist()]
        asked = [_query_name(image) for image in settings.images]
        table = _table(asked, found, cosine)
        path = target.folder / f"{target.file_name}_similar"
        write_text_atomically(path.with_name(f"{path.name}.csv"), table)
        _draw(path.with_name(f"{path.name}.png"), target, settings.images, rows, found, asked)
        for name, line, near in zip(asked, found, cosine, strict=True):
            print(f"  {name}: " + ", ".join(f"{n} ({c:.2f})" for n, c in zip(line[:3], near.tolist(), strict=False)))

    run_on_first_rank(search)
    return []


def _check_readable(target: EvaluationTarget, images: Sequence[Path]) -> None:
    """Refuse queries that are no images."""
    try:
        for image in images:
            target.data.decode(image)
    except UserError as e:
        reason = str(e).partition("; ")[0]  # what follows is for images of a data set
        raise UserError(f"--similar: {reason}; name image files") from e


def _query_name(image: Path) -> str:
    """The path as it was typed where that is relative, else its last component."""
    path = PurePath(image)
    return escaped(path.name if path.is_absolute() else path.as_posix())


@torch.no_grad()
def _features(target: EvaluationTarget, images: tuple[Path, ...]) -> Tensor:
    """(Q, D) features of image files."""
    with evaluation_mode(target.network):
        parts = [
            target.network(target.data.views_of_files(images[first : first + AT_ONCE], target.device)).float().cpu()
            for first in range(0, len(images), AT_ONCE)
        ]
    return torch.cat(parts)


def _table(asked: list[str], found: list[list[str]], cosine: Tensor) -> str:
    """CSV text: query, rank from 1, path relative to the training folder, cosine."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("query", "rank", "path", "cosine"))
    for name, line, near in zip(asked, found, cosine.tolist(), strict=True):
        writer.writerows((name, i + 1, path, f"{c:.4f}") for i, (path, c) in enumerate(zip(line, near, strict=True)))
    return text.getvalue()


def _draw(
    path: Path, target: EvaluationTarget, images: tuple[Path, ...], rows: Tensor, found: list[list[str]],
    asked: list[str],
) -> None:  # fmt: skip
    """Draw the first queries beside their neighbours, each with its file name."""
    train = target.data.data.train
    queries = [target.data.decode(image) for image in images[:DRAWN]]
    near = [[train.decode(int(row)).permute(1, 2, 0).numpy() for row in line] for line in rows[:DRAWN]]
    captions = [[caption(name), *map(caption, line)] for name, line in zip(asked, found, strict=True)][:DRAWN]
    neighbour_grid(path, [query.permute(1, 2, 0).numpy() for query in queries], near, None, [], captions)
