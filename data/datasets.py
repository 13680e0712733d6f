"""Data sets by name: images, labels, number of classes, mean and deviation; indices are positions in the data set."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from data.encoded import EncodedImages, preview
from data.folder import FolderImages
from data.images import ArrayImages, Images, reason
from data.labels import UNLABELLED, LabelSets
from data.scan import unread_note
from data.sources import find_places, read_place
from data.tables import Columns
from utils.distributed import all_equal
from utils.errors import UserError
from utils.files import typed_path
from utils.names import escaped, shown
from utils.plan import TrainingSet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_COLOR_JITTER = {"jitter_strengths": [0.4, 0.4, 0.0, 0.0], "gray": [0.0]}


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set that are known before it is read.

    load: (folder, split) -> images, for split "train" (which may hold unlabelled images) or "val"; None for images in
    the user's own form. classes: None where only the folder knows. folder: default --data_folder/<folder>/{train,val}.
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


def _torchvision(name: str, content: str) -> Callable[[Path, str], Images]:
    """A loader of torchvision's own CIFAR10, CIFAR100 or STL10. content: the file or folder that it reads."""

    def load(root: Path, split: str) -> Images:
        import torchvision

        kind = getattr(torchvision.datasets, name)
        stl = name == "STL10"
        part = {"split": "train+unlabeled" if split == "train" else "test"} if stl else {"train": split == "train"}
        try:  # without a lock: the folder may be read-only
            found = kind(root, **part)
        except RuntimeError:  # its files are not there, or not whole yet
            with _download_lock(root, name):  # one process downloads, the others wait and find the files
                try:
                    found = kind(root, **part)
                except RuntimeError:
                    found = _download(kind, root, part, name, content)
        pixels = found.data if stl else found.data.transpose(0, 3, 1, 2)
        labels = found.labels if stl else found.targets
        return ArrayImages(torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(labels).long())

    return load


@contextlib.contextmanager
def _download_lock(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of a download into `root`, which is made; a folder that cannot be written to is a UserError."""
    with contextlib.ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(root / f".{name}.lock"))
        except OSError as e:
            raise UserError(
                f"{name} is not in {shown(root)} and cannot be downloaded into it ({reason(e)}); name a folder that "
                f"can be written to with --data_folder"
            ) from e
        yield


def _download(kind: Any, root: Path, part: dict[str, Any], name: str, content: str) -> Any:
    print(f"{name} is not in {root}: downloading it", flush=True)
    try:
        return kind(root, download=True, **part)
    except (OSError, RuntimeError) as e:
        raise UserError(
            f"{name} is not in {root.resolve()} and cannot be downloaded ({e}); put {content} there, "
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
    """A data set as read: val is None without validation images; classes is 0 where no image has exactly one label.

    bad: path -> reason, of the image files that were left out.
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
        """The images of "train", and of "val" where there are validation images."""
        return {"train": self.train} if self.val is None else {"train": self.train, "val": self.val}

    def label_sets(self, split: str) -> Tensor | None:
        """(N, C) bool, the classes of each image, where images have several labels; None where they have one."""
        sets = _label_sets(self.splits()[split])
        return sets and sets.member

    def check_ranks(self) -> None:
        """Refuse when the processes, each of which reads the folders by itself, found different images."""
        found = [f"{len(i)} {i.fingerprint()}" for i in self.splits().values() if not isinstance(i, ArrayImages)]
        if not all_equal(" ".join(found)):
            raise UserError(
                "the processes have read different images; give every machine the same folder, and do not change files "
                "while a run starts"
            )


def training_set(name: str, data: Data) -> TrainingSet:
    """The facts about the training images that a plan needs."""
    labelled = int((data.train.labels >= 0).sum())
    return TrainingSet(name, len(data.train), labelled, data.classes, data.train.fingerprint())


def read_dataset(
    name: str, data_folder: str, train_dir: str | None, val_dir: str | None, on_bad_image: str = "stop",
    unlabelled: bool = False, image_column: str | None = None, label_column: str | None = None,
) -> Data:  # fmt: skip
    """Read the data set `name`: from where a directory is named or the data set has no loader of its own.

    on_bad_image: corrupt and truncated images are an error ("stop"), or they are left out ("skip"); here and nowhere
    else, before anything is derived from the number of images. unlabelled: no image gets a label.
    """
    info, columns = DATASETS[name], Columns(image_column, label_column, unlabelled)
    notes: list[str] = []
    if info.load and not (train_dir or val_dir):
        _refuse_flags(name, on_bad_image, columns)
        root = typed_path(data_folder)
        loaded = Data(info.load(root, "train"), info.load(root, "val"), info.classes or 0, info.mean, info.std, notes)
        _check_labels(name, loaded)
        return loaded
    train_place, val_place = find_places(name, info.folder, data_folder, train_dir, val_dir)
    train, val = read_place(train_place, columns), None
    assert train is not None, "only validation images may be absent"
    where, sets = shown(train_place.path), _label_sets(train)
    if val_place and (train.classes or sets):
        val = _labelled_alike(sets, read_place(val_place, columns, sets.classes if sets else train.classes))
    elif val_place and not val_place.validation:
        unused = f"so the validation images in {shown(val_place.path)} are not used"
        notes.append(f"{where} is an unlabelled folder, {unused}")
    notes += _source_notes(train, val)
    bad: dict[str, str] = {}
    train = _without_bad(train, on_bad_image, notes, bad)
    val = _without_bad(val, on_bad_image, notes, bad) if val else None
    notes += _depth_notes(train, val)
    classes = len(train.classes)
    if info.classes and classes != info.classes and not sets:
        notes.append(f"{name} usually has {info.classes} classes; {where} has {classes}")
    if sets:
        notes.append(
            f"the images of {where} have several labels, of {len(sets.classes)} classes: whatever needs one label per "
            f"image is skipped"
        )
    elif not classes:
        kind = "folder" if isinstance(train, FolderImages) else "data set"
        notes.append(f"{where} is an unlabelled {kind} of {len(train):,} images: whatever needs labels is skipped")
    return Data(train, val, classes, info.mean, info.std, notes, bad)


def _label_sets(images: Images | None) -> LabelSets | None:
    return images.label_sets if isinstance(images, EncodedImages) else None


def _labelled_alike(sets: LabelSets | None, val: Images | None) -> Images | None:
    """The validation images, with sets of labels where those of the training images, `sets`, are such."""
    if val is None or (sets is None) == (_label_sets(val) is None):
        return val
    if sets is None or not isinstance(val, EncodedImages):
        one, other = ("one label", "several") if sets is None else ("several labels", "one")
        raise UserError(f"training images have {one} each, validation images {other}; label both in the same form")
    val.label_sets = LabelSets(val.labels[:, None] == torch.arange(len(sets.classes)), sets.classes)
    val.labels, val.classes = torch.full_like(val.labels, UNLABELLED), []
    return val


def _refuse_flags(name: str, on_bad_image: str, columns: Columns) -> None:
    """Refuse flags that have no effect on a data set that is not read from the user's own files."""
    given = {
        "--on_bad_image skip": on_bad_image == "skip", "--unlabelled": columns.unlabelled,
        "--image_column": columns.image, "--label_column": columns.label,
    }  # fmt: skip
    for flag in (flag for flag, typed in given.items() if typed):
        raise UserError(f"{flag} has no effect on {name}, which is not read from image files; remove it")


def _source_notes(train: Images, val: Images | None) -> list[str]:
    """What a user may not expect of the images; those that are not read are counted over both splits."""
    splits = [images for images in (train, val) if isinstance(images, EncodedImages)]
    unread = [os.path.join(i.root, name) for i in splits if isinstance(i, FolderImages) for name in i.unread]
    notes = [unread_note(unread, Path())] if unread else []
    return notes + [note for images in splits for note in images.notes]


def _without_bad(images: Images, on_bad_image: str, notes: list[str], bad: dict[str, str]) -> Images:
    """Check the images; with "skip", return the readable ones, note the others and add them to `bad`."""
    if not isinstance(images, EncodedImages):
        if on_bad_image == "skip":
            raise UserError("--on_bad_image skip has no effect on arrays, which are not image files; remove it")
        return images
    if on_bad_image == "stop":
        images.check()
        return images
    readable, found = images.readable()
    if found:
        names = preview([os.path.relpath(path, escaped(images.root)) for path in found])
        notes.append(
            f"{len(found):,} of {len(images):,} {images.ITEMS} in {shown(images.root)} are not readable images and are "
            f"left out ({names}); bad_images.txt in the run folder lists them"
        )
        bad |= found
    return readable


def _depth_notes(train: Images, val: Images | None) -> list[str]:
    """A remark on images of 16 bits, counted over both splits, where there are any."""
    splits = [images for images in (train, val) if isinstance(images, EncodedImages) and images.deep[0]]
    if not splits:
        return []
    deep, looked = (sum(images.deep[k] for images in splits) for k in (0, 1))
    return [
        f"{deep:,} of {looked:,} images in {' and '.join(shown(images.root) for images in splits)} have 16 bits per "
        f"channel: 0 to 65535 becomes 0 to 255, so images of a smaller range get dark; stretch those to 16 bits first"
    ]


def _check_labels(name: str, data: Data) -> None:
    """Refuse labels beyond the number of classes: a classifier has no output for them and would fail in its loss."""
    for split, images in (("training", data.train), ("validation", data.val)):
        largest = int(images.labels.max()) if images is not None and len(images) else -1
        if largest >= data.classes:
            raise UserError(
                f"the {split} images of {name} have labels up to {largest}, but its entry in DATASETS says "
                f"{data.classes} classes, 0 to {data.classes - 1}; correct the labels or the entry"
            )
