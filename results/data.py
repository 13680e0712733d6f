"""The images of the results: CIFAR-10 (JPEG) as class folders, and the part of its training images for the search."""

from pathlib import Path

from results.rows import DATA
from results.tables import ROOT

SEARCH_IMAGES, HELD_OUT = 1000, 250  # of each class


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
