"""Reading and decoding photographs in random order from folders, tar shards and a Parquet file, by Lookalike."""

import atexit
import io
import itertools
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.sides import Settings, Work
from bench.task import jpeg_files, rate
from data.images import Images
from data.sources import Place, read_place
from data.tables import Columns

SHARD = 100  # photographs in a shard


def folders(settings: Settings) -> Work:
    assert settings.photographs
    return decoding(settings.photographs, settings)


def shards(settings: Settings) -> Work:
    return packed(settings, write_shards)


def parquet(settings: Settings) -> Work:
    return packed(settings, write_parquet)


def packed(settings: Settings, write: Callable[[list[str], Path], None]) -> Work:
    """Decoding from another form of the same files, written first into a folder that ends with the process."""
    assert settings.photographs
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(jpeg_files(settings.photographs), folder)
    return decoding(folder, settings)


def decoding(place: Path, settings: Settings) -> Work:
    """Images per second in another random order each time."""
    images = read_place(Place(place), Columns())
    assert images is not None
    epochs = itertools.count()

    def epoch() -> int:
        return decode_all(images, next(epochs))

    return Work(lambda: rate(epoch, settings.seconds), lambda: {"images": len(images)})


def decode_all(images: Images, seed: int) -> int:
    for i in np.random.default_rng(seed).permutation(len(images)):
        images.decode(int(i))
    return len(images)


def write_shards(files: list[str], folder: Path) -> None:
    """Tar files in WebDataset's form: a photograph and its class beside it."""
    for start in range(0, len(files), SHARD):
        with tarfile.open(folder / f"{start // SHARD:04d}.tar", "w") as shard:
            for i, file in enumerate(files[start : start + SHARD], start):
                shard.add(file, f"{i:06d}.jpg")
                label = tarfile.TarInfo(f"{i:06d}.cls")
                label.size = 1
                shard.addfile(label, io.BytesIO(b"0"))


def write_parquet(files: list[str], folder: Path) -> None:
    """A Parquet file with a column of images, by the library `datasets`."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["photograph"])})
    rows = {"image": files, "label": [0] * len(files)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
