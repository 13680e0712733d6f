"""name -> images, labels, number of classes, mean and deviation; always with true indices."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from data.folder import FolderImages, read_folder, some
from data.images import ArrayImages, Images
from utils.distributed import all_equal
from utils.errors import UserError
from utils.plan import TrainingSet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_COLOR_JITTER = {"jitter_strengths": [0.4, 0.4, 0.0, 0.0], "gray": 0.0}


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    load: (folder, split) -> images, for split "train" (which may hold unlabelled images) or "val"; None for class
    folders. classes: None where only the folder knows. folder: default --data_folder/<folder>/{train,val}.
    views: this data set's defaults of the view flags.
    """

    classes: int | None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    load: Callable[[Path, str], Images] | None = None
    folder: str = ""
    views: dict[str, Any] = field(default_factory=dict)


def _digits(root: Path, split: str) -> Images:
    """The 1,797 scans of 8x8 pixels and 17 grays inside scikit-learn; every fifth is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    part = (np.arange(len(bunch.target)) % 5 == 4) == (split == "val")
    pixels = torch.from_numpy(np.rint(bunch.images[part] * (255 / 16)).astype(np.uint8))
    return ArrayImages(pixels[:, None].repeat(1, 3, 1, 1), torch.from_numpy(bunch.target[part]).long())


def _torchvision(name: str, what: str) -> Callable[[Path, str], Images]:
    """A loader of torchvision's own CIFAR10, CIFAR100 or STL10; `what` is what its folder must hold."""

    def load(root: Path, split: str) -> Images:
        import torchvision

        kind = getattr(torchvision.datasets, name)
        stl = name == "STL10"
        part = {"split": "train+unlabeled" if split == "train" else "test"} if stl else {"train": split == "train"}
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):  # one process downloads, the others wait and find it
            try:
                found = kind(root, **part)
            except RuntimeError:
                found = _download(kind, root, part, name, what)
        pixels = found.data if stl else found.data.transpose(0, 3, 1, 2)
        labels = found.labels if stl else found.targets
        return ArrayImages(torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(labels).long())

    return load


def _download(kind: Any, root: Path, part: dict, name: str, what: str) -> Any:
    print(f"{name} is not in {root}: downloading it", flush=True)
    try:
        return kind(root, download=True, **part)
    except (OSError, RuntimeError) as e:
        raise UserError(
            f"{name} is not in {root.resolve()} and cannot be downloaded ({e}); put {what} there, "
            f"or read class folders with --train_dir and --val_dir"
        ) from e


SMALL_VIEWS = {"large_size": 32, "small_size": 18, "blur": [0.0]}
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616), "views": SMALL_VIEWS}

DATASETS = {
    "cifar10": DatasetInfo(10, load=_torchvision("CIFAR10", "cifar-10-batches-py"), **CIFAR),  # type: ignore[arg-type]
    "cifar100": DatasetInfo(
        100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), _torchvision("CIFAR100", "cifar-100-python"),
        views=SMALL_VIEWS,
    ),
    "custom": DatasetInfo(None),
    "digits": DatasetInfo(
        10, (0.305,) * 3, (0.376,) * 3, _digits,
        views=SMALL_VIEWS | NO_COLOR_JITTER
        | {"flip": 0.0, "crop_scale": [0.3, 1.0], "small_scale": [0.1, 0.3], "solarize": [0.0]},
    ),
    "imagenet": DatasetInfo(1000, folder="imagenet"),
    "imagenet100": DatasetInfo(100, folder="imagenet100"),
    "stl10": DatasetInfo(
        10, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), _torchvision("STL10", "stl10_binary"),
        views={"large_size": 96, "small_size": 40},
    ),
}  # fmt: skip


@dataclass
class Data:
    """A data set as read: val is None where there is nothing to judge on; classes is 0 where nothing is labelled.

    bad: path -> why, of the files that were left out.
    """

    train: Images
    val: Images | None
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    notes: list[str]
    bad: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        return self.classes > 0

    def splits(self) -> dict[str, Images]:
        """ "train", and "val" where there is one."""
        return {"train": self.train} if self.val is None else {"train": self.train, "val": self.val}

    def check_ranks(self) -> None:
        """Every process reads the folders by itself; they can only share the images when all found the same ones."""
        read = [f"{len(i)} {i.fingerprint()}" for i in self.splits().values() if isinstance(i, FolderImages)]
        if not all_equal(" ".join(read)):
            raise UserError(
                "the processes have read different images; give every machine the same folder, and change no file "
                "while a run starts"
            )


def training_set(name: str, data: Data) -> TrainingSet:
    """The facts about the training images that a plan needs."""
    labelled = int((data.train.labels >= 0).sum())
    return TrainingSet(name, len(data.train), labelled, data.classes, data.train.fingerprint())


def read_dataset(
    name: str, data_folder: str, train_dir: str | None, val_dir: str | None, on_bad_image: str = "stop"
) -> Data:
    """The data set `name`; class folders when a directory is named or the data set has no loader of its own.

    on_bad_image: files that are no images are an error ("stop"), or they are left out ("skip"); here and nowhere else,
    before anything is derived from how many images there are.
    """
    info, root = DATASETS[name], Path(data_folder).expanduser()
    notes: list[str] = []
    if info.load and not (train_dir or val_dir):
        if on_bad_image == "skip":
            raise UserError(
                f"--on_bad_image skip does nothing for {name}, which is not a folder of images; leave it out"
            )
        loaded = Data(info.load(root, "train"), info.load(root, "val"), info.classes or 0, info.mean, info.std, notes)
        _check_labels(name, loaded)
        return loaded
    train_folder, val_folder = _folders(name, info, root, train_dir, val_dir)
    train, val = read_folder(train_folder), None
    if val_folder and train.classes:
        val = read_folder(val_folder, train.classes)
    elif val_folder:
        notes.append(f"{train_folder} has no class folders, so {val_folder} is not used")
    bad: dict[str, str] = {}
    train = _without_bad(train, on_bad_image, notes, bad)
    val = _without_bad(val, on_bad_image, notes, bad) if val else None
    classes = len(train.classes)
    if info.classes and classes != info.classes:
        notes.append(f"{name} usually has {info.classes} classes; {train_folder} has {classes}")
    if not classes:
        notes.append(f"{train_folder} is a pile of {len(train):,} images without labels: no probe, no kNN")
    return Data(train, val, classes, info.mean, info.std, notes, bad)


def _without_bad(images: FolderImages, on_bad_image: str, notes: list[str], bad: dict[str, str]) -> FolderImages:
    """The images as they are after a check, or those that are readable, with a note; the others go into `bad`."""
    if on_bad_image == "stop":
        images.check()
        return images
    readable, found = images.readable()
    if found:
        names = some([str(Path(path).relative_to(images.root)) for path in found])
        notes.append(
            f"{len(found):,} of {len(images):,} files in {images.root} are not readable images and left out ({names}); "
            f"bad_images.txt in the run folder lists them"
        )
        bad |= found
    return readable


def _check_labels(name: str, data: Data) -> None:
    """A label that the probe has no output for would end training inside a loss."""
    for split, images in (("training", data.train), ("validation", data.val)):
        largest = int(images.labels.max()) if images is not None and len(images) else -1
        if largest >= data.classes:
            raise UserError(
                f"the {split} images of {name} have labels up to {largest}, but its entry in DATASETS says "
                f"{data.classes} classes, 0 to {data.classes - 1}; correct one of them"
            )


def _folders(
    name: str, info: DatasetInfo, root: Path, train_dir: str | None, val_dir: str | None
) -> tuple[Path, Path | None]:
    """(training folder, validation folder or None): the named ones, else the usual ones."""
    if not root.is_dir():
        raise UserError(f"--data_folder {root} is not a folder; name the folder that holds {name}")
    base = root / info.folder if not train_dir and (root / info.folder).is_dir() else root
    train = root / train_dir if train_dir else base / "train"
    if not train_dir and not train.is_dir() and name == "custom":
        train = root  # just a folder of images
    if not train.is_dir():
        given = "" if train_dir else "; name it with --train_dir, relative to --data_folder"
        raise UserError(f"no training images of {name}: {train} is not a folder{given}")
    if val_dir:
        if not (root / val_dir).is_dir():
            raise UserError(f"no validation images of {name}: --val_dir {root / val_dir} is not a folder")
        return train, root / val_dir
    usual = [base / "val", base / "test"] if not train_dir and train != root else []
    return train, next((folder for folder in usual if folder.is_dir()), None)
