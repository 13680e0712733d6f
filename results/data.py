"""The images of the results: CIFAR-10 (JPEG) as class folders, the part of its training images for the search, and
parts of photographs."""

from pathlib import Path

from PIL import Image

from results.rows import DATA, PHOTOGRAPHS
from results.tables import ROOT

SEARCH_IMAGES, HELD_OUT = 1000, 250  # of each class
WHOLE_PHOTOGRAPHS = "datasets/imagenet-sample"
PARTS = 4  # along each side of a photograph


def link_search_images(root: Path = ROOT) -> None:
    """Link the first 1,000 training images of each class, and the last 250, in a folder of their own."""
    for folder in sorted((root / DATA / "train").iterdir()):
        paths = sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name))
        for split, chosen in (("train", paths[:SEARCH_IMAGES]), ("held_out", paths[-HELD_OUT:])):
            target = root / f"{DATA}-search" / split / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for path in chosen:
                (target / path.name).unlink(missing_ok=True)
                (target / path.name).symlink_to(path.resolve())


def cut_photographs(root: Path = ROOT) -> int:
    """Cut each photograph in 4 x 4 parts, a class for each photograph: every other part is shown, the rest asked for.

    Returns the number of photographs, 0 where there are none.
    """
    photographs = sorted((root / WHOLE_PHOTOGRAPHS).rglob("*.JPEG"))
    for photograph in photographs:
        with Image.open(photograph) as opened:
            image = opened.convert("RGB")
        width, height = image.width // PARTS, image.height // PARTS
        for row in range(PARTS):
            for column in range(PARTS):
                split = "asked" if (row + column) % 2 else "shown"
                folder = root / PHOTOGRAPHS / split / photograph.stem
                folder.mkdir(parents=True, exist_ok=True)
                box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
                image.crop(box).save(folder / f"{row}-{column}.jpg", quality=95)
    return len(photographs)
