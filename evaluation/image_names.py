"""Names of the images of a data set, as files and pictures for other people show them."""

import os

from evaluation.interfaces import Images
from utils.names import escaped

SHOWN = 24  # characters of a name below a picture


def image_name(images: Images, split: str, i: int) -> str:
    """The name of an image on one line: its path relative to the folder of the split, or "split/number" without files.

    It holds no folder of this machine. Line breaks and bytes that are not UTF-8 are written as escapes.
    """
    name = images.names[i]
    return f"{split}/{name}" if name.isdecimal() else escaped(name)


def image_names(images: Images, split: str) -> list[str]:
    """The name of every image; see `image_name`."""
    return [image_name(images, split, i) for i in range(len(images))]


def display_name(images: Images, i: int) -> str:
    """The name of an image beside a picture of it: its path, or "image 7" without files."""
    name = images.names[i]
    return f"image {name}" if name.isdecimal() else escaped(name)


def has_file_names(images: Images) -> bool:
    """Whether the images have names of their own, and not only row numbers."""
    return len(images) > 0 and not images.names[0].isdecimal()


def caption(name: str) -> str:
    """The file name without its folders, without the middle of a long one."""
    text = os.path.basename(name)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2 - 1]}..{text[-SHOWN // 2 + 1 :]}"
