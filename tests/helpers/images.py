"""Images for tests: digits, random files, class folders, broken files."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from data.datasets import Data, read_dataset


@functools.cache
def read(data_folder: str | None = None) -> Data:
    """The images of a folder, or else the digits."""
    return read_dataset("custom" if data_folder else "digits", data_folder or "none", None, None)


@functools.cache
def digit_files() -> Data:
    """The digits as they would be in class folders, for a pipeline that reads files only."""
    root, digits = Path(tempfile.mkdtemp()), read()
    for split, images in digits.splits().items():
        for i, label in enumerate(images.labels.tolist()):
            path = root / split / str(label) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.decode(i).permute(1, 2, 0).numpy()).save(path)
    return dataclasses.replace(read_dataset("custom", str(root), None, None), mean=digits.mean, std=digits.std)


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
    """A random image of (width, height) in a Pillow mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16)).save(path)
    else:
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode).save(path)
    return path


def class_folders(root: Path, classes: int = 2, each: int = 6, size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
    """root/c0/0.png ...: images of classes that differ only by their folder."""
    for c in range(classes):
        for i in range(each):
            write_image(root / f"c{c}" / f"{i}.png", size=size, seed=seed + 100 * c + i)
    return root


BAD = ("cut.jpg", "cut.png", "empty.jpg", "text.jpg")


def spoil(folder: Path) -> list[Path]:
    """Adds files that are cut off, empty or no images at all."""
    paths = [folder / name for name in BAD]
    for path in paths[:2]:
        write_image(path, size=(90, 70))
        path.write_bytes(path.read_bytes()[:-500])
    paths[2].write_bytes(b"")
    paths[3].write_text("this is text")
    return paths


def unlabelled_folder(folder):
    """Images without labels."""
    for i in range(6):
        write_image(folder / "unlabelled" / f"{i}.png", seed=i)
    return str(folder / "unlabelled")
