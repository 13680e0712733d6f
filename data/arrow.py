"""Images and labels in Parquet files and in Hugging Face data sets, by pyarrow and `datasets`."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.encoded import EncodedImages
from data.file_list import RowNames
from data.images import reason
from data.labels import UNLABELLED, Labels, class_positions, read_labels
from utils.errors import UserError
from utils.names import shown

if TYPE_CHECKING:
    from data.tables import Columns

HUB = "hf://datasets/"  # a data set by its name, as the hub's own clients write it
VALIDATION = ("validation", "valid", "val", "test")  # names of validation splits, the best one first
INSTALL = "pip install -r requirements-datasets.txt"


def parquet_columns(path: Path) -> dict[str, bool]:
    """The columns of a Parquet file, and whether one holds the bytes of images."""
    pq, pa = _pyarrow()
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{shown(path)} cannot be read as Parquet ({reason(e)}); write it again") from e
    types = {field.name: field.type for field in schema}
    kinds = pa.types
    return {name: kinds.is_struct(t) or kinds.is_binary(t) or kinds.is_large_binary(t) for name, t in types.items()}


def parquet_values(path: Path, columns: Sequence[str]) -> list[list[Any]]:
    """The values of some columns of a Parquet file."""
    pq, pa = _pyarrow()
    try:
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{shown(path)} cannot be read as Parquet ({reason(e)}); write it again") from e
    return [table.column(column).to_pylist() for column in columns]


class ArrowImages(EncodedImages):
    """A column of images in Arrow files that are mapped into memory.

    data_set: a `datasets.Dataset` of that column alone; it is handed to another process by the names of its files.
    rows: (N,) the rows of the images.
    """

    PER_IMAGE = ("lengths", "rows")

    def __init__(self, root: Path | str, data_set: Any, labels: Sequence[int], classes: Sequence[str]):
        (self._column,) = data_set.column_names
        self._data_set, self._chunks = data_set, data_set.data.column(self._column)
        self.rows = np.arange(len(data_set))
        super().__init__(root, RowNames(self.rows), self._lengths(), labels, classes)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_chunks": None}  # they would be copied

    def content(self, i: int) -> str | bytes:
        if self._chunks is None:  # in another process
            self._chunks = self._data_set.data.column(self._column)
        value = self._chunks[int(self.rows[i])].as_py() or {}
        content: str | bytes = value.get("bytes") or value.get("path") or b""
        return content

    def path(self, i: int) -> str:
        return f"row {self.names[i]} of {self.root}"

    def stamps(self) -> Iterator[str]:
        for file in self._data_set.cache_files:
            yield str(os.stat(file["filename"]).st_mtime_ns)

    def _lengths(self) -> NDArray:
        """(N,) bytes of the images; of those in files of their own, the length of their names."""
        import pyarrow.compute as pc

        column = self._chunks
        content = (pc.binary_length(pc.struct_field(column, name)) for name in ("bytes", "path"))
        lengths: NDArray = pc.coalesce(*content, 0).to_numpy().astype(np.int64)
        return lengths


def read_data_set(
    place: Path | str, split: str | None, validation: bool, columns: "Columns", classes: list[str] | None
) -> ArrowImages | None:
    """The images of a split of a saved data set, of Parquet files or of a data set of the hub.

    split: its name; by default the training split, or the validation split (None where there is none).
    """
    data_set = _split(_load(str(place)), split, validation, shown(place))
    if data_set is None:
        return None
    import datasets

    data_set = data_set.with_format(None)  # a format that was saved with it makes tensors of labels, or hides columns
    names, features, where = data_set.column_names, data_set.features, shown(place)
    image = columns.find_image(names, where, [name for name in names if isinstance(features[name], datasets.Image)])
    if columns.label or any(isinstance(feature, datasets.ClassLabel) for feature in features.values()):
        likely = [name for name in names if isinstance(features[name], datasets.ClassLabel)]
    else:
        likely = []
    label = columns.find_label(names, where, likely)
    try:
        pixels = data_set.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except Exception as e:  # the libraries raise many kinds
        raise UserError(f"column {shown(image)} of {where} holds no images ({reason(e)}); name another one") from e
    found = Labels.none(len(data_set))
    if label:
        found = _labels(list(data_set[label]), features[label], f"{where}, column {shown(label)}", classes)
    images = ArrowImages(place, pixels, found.positions, found.classes)
    images.label_sets = found.sets
    return images


def _labels(values: list[Any], feature: Any, where: str, classes: list[str] | None) -> Labels:
    """Labels and classes of a column; a ClassLabel keeps the numbers and the names that it defines."""
    names = getattr(feature, "names", None)
    if names is None:
        return read_labels(values, where, classes)
    if classes is None or classes == names:
        return Labels([UNLABELLED if value is None else max(value, UNLABELLED) for value in values], list(names))
    return Labels(*class_positions([None if v is None or v < 0 else names[v] for v in values], where, classes))


def _split(loaded: Any, split: str | None, validation: bool, where: str) -> Any:
    """One split of what was loaded, which may be the only one; None where there is no validation split."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise UserError(f"{where} has no splits, so {split} is none of them; remove --train_dir and --val_dir")
        return None if validation else loaded
    if split is None:
        usual = VALIDATION if validation else ("train", *(loaded if len(loaded) == 1 else ()))
        split = next((name for name in usual if name in loaded), None)
        if split is None and validation:
            return None
    if split not in loaded:
        flag = "--val_dir" if validation else "--train_dir"
        raise UserError(f"{where} has no split {split or 'train'}; name one of {', '.join(loaded)} with {flag}")
    return loaded[split]


@functools.lru_cache(maxsize=4)
def _load(place: str) -> Any:
    """The data set with all its splits: saved by save_to_disk, made of Parquet files, or of the hub by its name."""
    try:
        import datasets
    except ImportError as e:
        raise UserError(f"{shown(place)} needs the library datasets ({e}): {INSTALL}") from e
    try:
        if place.startswith(HUB):
            return datasets.load_dataset(place.removeprefix(HUB))
        if place.endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files={"train": place})["train"]
        return datasets.load_from_disk(place) if is_saved(Path(place)) else datasets.load_dataset(place)
    except Exception as e:  # the libraries raise many kinds, those of the network among them
        remedy = (
            "check the name and the network, or download it and name its folder"
            if place.startswith(HUB)
            else ("write or copy it again")
        )
        raise UserError(f"{shown(place)} cannot be loaded by datasets ({reason(e)}); {remedy}") from e


SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))  # files of what save_to_disk wrote: either these


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    return any(all((folder / name).is_file() for name in names) for names in SAVED)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(f"Parquet files need pyarrow ({e}): {INSTALL}") from e
    return pyarrow.parquet, pyarrow
