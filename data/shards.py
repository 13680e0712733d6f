"""Images in tar shards, in the form of WebDataset: files of one sample share their name up to its first dot.

The headers of all shards are read once. What is found is kept beside them in INDEX, so that every image is read from
its offset, in any order and by any number of processes.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from data.encoded import PUT_BACK, EncodedImages
from data.file_list import Names
from data.images import reason
from data.labels import UNLABELLED, class_positions
from data.scan import entries, is_folder, read_endings
from data.tables import Columns
from utils.errors import UserError
from utils.files import replaced_atomically
from utils.names import shown

INDEX = "lookalike_index.npz"
VERSION = 2  # of the index
BLOCK = 512  # bytes of a tar header; the end of an archive is a block of zeros
WAIT = 3600  # seconds for another process that makes the index
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
COPY = "copy or write it again"


class Member(NamedTuple):
    """An image in a shard: its name, the offset and number of its bytes, and its label as text ('' for none)."""

    name: str
    offset: int
    length: int
    label: str


class ShardImages(EncodedImages):
    """Images in shards. files: the shards, below root; facts: their lengths and times when they were indexed.

    shards, offsets: (N,) the shard of each image and the position of its first byte.
    """

    PER_IMAGE = ("lengths", "shards", "offsets")

    def __init__(
        self, root: Path, facts: dict[str, list[int]], index: dict[str, NDArray], labels: Sequence[int],
        classes: Sequence[str],
    ):  # fmt: skip
        self.files, self.facts = list(facts), facts
        self.shards, self.offsets = index["shards"], index["offsets"]
        members = zip(self.shards.tolist(), _texts(index["names"]), strict=True)
        names = (f"{self.files[k]}/{name}" for k, name in members)
        super().__init__(root, Names(names), index["lengths"], labels, classes)

    def content(self, i: int) -> bytes:
        file = self.files[self.shards[i]]
        with open(os.path.join(self.root, file), "rb", buffering=0) as shard:
            length, now = self.facts[file][0], os.fstat(shard.fileno()).st_size
            if now != length:
                raise UserError(
                    f"{shown(os.path.join(self.root, file))} changed while the run went on (from {length:,} to "
                    f"{now:,} bytes); {PUT_BACK}"
                )
            shard.seek(int(self.offsets[i]))
            return _read_all(shard, int(self.lengths[i]))

    def opened(self, i: int) -> BinaryIO:
        path = os.path.join(self.root, self.files[self.shards[i]])
        return io.BufferedReader(MemberReader(path, int(self.offsets[i]), int(self.lengths[i])))

    def stamps(self) -> Iterator[str]:
        return (str(time) for _, time in self.facts.values())


class MemberReader(io.RawIOBase):
    """The bytes of one member of a shard, to look at its beginning and its end without reading what is between."""

    def __init__(self, path: str, offset: int, length: int):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
        self._offset, self._length, self._at = offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise OSError("the position is before the beginning")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(wanted) if wanted else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def find_shards(path: Path) -> list[str]:
    """The names of the shards in a folder, sorted; or of the one shard that a path is."""
    names = [path.name]
    if path.is_dir():
        likely = [entry for entry in entries(path) if entry.name.lower().endswith((".tar", *PACKED))]
        names = sorted(entry.name for entry in likely if not is_folder(entry) and entry.is_file())
    if packed := [name for name in names if name.lower().endswith(PACKED)]:
        raise UserError(
            f"{shown(path / packed[0] if path.is_dir() else path)} is compressed, so no image can be read from its "
            f"offset; unpack it to .tar"
        )
    return [name for name in names if name.lower().endswith(".tar")]


def read_shards(path: Path, columns: Columns, classes: list[str] | None) -> ShardImages:
    """The images of a shard, or of the shards in a folder, in the order of their names and of their members."""
    root = path if path.is_dir() else path.parent
    facts = {}
    for name in find_shards(path):
        now = os.stat(root / name)
        facts[name] = [now.st_size, now.st_mtime_ns]
    about = json.dumps([VERSION, columns.image, columns.label, facts])
    kept = root / (INDEX if path.is_dir() else f"{path.name}.{INDEX}")
    index, note = _load_or_make(kept, about, root, list(facts), columns)
    where = shown(path)
    if not len(index["lengths"]):
        raise UserError(f"{where} has no images ({', '.join(sorted(read_endings()))}); name another folder")
    found: tuple[list[int], list[str]] = ([UNLABELLED] * len(index["lengths"]), [])
    if not columns.unlabelled:
        found = class_positions(_labels(index, columns, where), f"the labels in {where}", classes)
    images = ShardImages(root, facts, index, *found)
    images.notes += [note] if note else []
    return images


def _labels(index: dict[str, NDArray], columns: Columns, where: str) -> list[str]:
    """Labels as text: those of .cls files, or else the first folders of the names where there are several."""
    labels = _texts(index["labels"])
    if columns.label and not any(labels):
        raise UserError(f"no sample in {where} has the label {shown(columns.label)}; correct --label_column")
    if any(labels):
        return labels
    folders = [name.split("/")[0] if "/" in name else "" for name in _texts(index["names"])]
    return folders if len(set(folders)) > 1 else labels


def _load_or_make(
    path: Path, about: str, root: Path, shards: list[str], columns: Columns
) -> tuple[dict[str, NDArray], str]:
    """(index of the shards, note): read where it describes their present state, or else made and kept beside them."""
    index = _load(path, about)
    if index is not None:
        return index, ""
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=WAIT):  # one process makes it, the others wait
            index = _load(path, about)
            if index is not None:
                return index, ""
            index = _make(root, shards, columns)
            why = _keep(index, path, about)
    except (OSError, Timeout) as e:
        why = reason(e)
    if index is None:
        index = _make(root, shards, columns)
    if not why:
        return index, ""
    note = f"the index of {len(shards):,} shards cannot be kept beside them ({why}): each start reads all their headers"
    return index, note


def _keep(index: dict[str, NDArray], path: Path, about: str) -> str:
    """Write the index; why it cannot be, where the disk is full or the folder takes a lock and no other file."""
    try:
        with replaced_atomically(path) as part, part.open("wb") as file:
            np.savez(file, **{"about": _bytes([about])} | index)  # type: ignore[arg-type]  # no array is called allow_pickle
    except UserError as e:
        return reason(e.__cause__) if isinstance(e.__cause__, Exception) else str(e)
    return ""


def _load(path: Path, about: str) -> dict[str, NDArray] | None:
    """The index in a file; None where there is none, or it is damaged, or of other shards."""
    try:
        with np.load(path) as file:
            if _texts(file["about"]) == [about]:
                return {name: file[name] for name in ("shards", "offsets", "lengths", "names", "labels")}
    except Exception:  # absent, cut off or changed: numpy raises many kinds
        pass
    return None


def _make(root: Path, shards: list[str], columns: Columns) -> dict[str, NDArray]:
    """The index of the shards: arrays with an entry per image, and names and labels as bytes."""
    progress = tqdm(shards, "indexing", disable=True if len(shards) < 20 else None)
    members = [_members(root / name, columns) for name in progress]
    found = [member for part in members for member in part]
    return {
        "shards": np.repeat(np.arange(len(shards)), [len(part) for part in members]),
        "offsets": np.array([member.offset for member in found], dtype=np.int64),
        "lengths": np.array([member.length for member in found], dtype=np.int64),
        "names": _bytes([member.name for member in found]),
        "labels": _bytes([member.label for member in found]),
    }


def _members(path: Path, columns: Columns) -> list[Member]:
    """The images of a shard with their labels, from the headers of its members."""
    where, files = shown(path), []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if info.isreg() and not os.path.basename(info.name).startswith((".", "__")):
                    _refuse_outside(info.name, where)
                    info.name = _without_dot(info.name)
                    files.append(info)
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            whole = file.read(BLOCK) == bytes(BLOCK)
            last = max((info.offset_data + info.size for info in files), default=0)
            if not whole or last > end:
                raise UserError(f"{where} is cut off or damaged at byte {end:,}; {COPY}")
            members = _samples(files, file, where, columns)
    except (OSError, tarfile.TarError, EOFError) as e:
        raise UserError(f"{where} cannot be read as a tar archive ({reason(e)}); {COPY}") from e
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where} has two images of one name, {shown(twice)}; rename one of them")
    return members


def _samples(files: list[tarfile.TarInfo], shard: BinaryIO, where: str, columns: Columns) -> list[Member]:
    """The image of every sample that has one."""
    members = []
    for key, sample in groupby(files, lambda info: _split(info.name)[0]):
        parts = {_split(info.name)[1]: info for info in sample}
        endings = [ending for ending in parts if _is_image(ending, columns.image)]
        if len(endings) > 1:
            raise UserError(
                f"sample {shown(key)} in {where} has several images ({', '.join(endings)}); name one of these endings "
                f"with --image_column"
            )
        for ending in endings:
            info = parts[ending]
            label = _label(parts, columns.label, lambda info: _bytes_of(shard, info), f"{where}/{shown(key)}")
            members.append(Member(info.name, info.offset_data, info.size, label))
    return members


def _label(
    parts: dict[str, tarfile.TarInfo], named: str | None, read: Callable[[tarfile.TarInfo], bytes], where: str
) -> str:
    """The label of a sample, '' for none: a file `named` (cls), or an entry of that name in its .json file."""
    ending = (named or "cls").lower()
    try:
        if ending in parts:
            return read(parts[ending]).decode().strip()
        if named and "json" in parts:
            value = json.loads(read(parts["json"])).get(named)
            return "" if value is None else str(value)
    except (ValueError, AttributeError) as e:
        raise UserError(f"the label of {where} cannot be read ({reason(e)}); correct it, or pass --unlabelled") from e
    return ""


def _split(name: str) -> tuple[str, str]:
    """(key of the sample, ending): the name up to the first dot of its last part, and the rest in small letters."""
    folder, base = os.path.split(name)
    stem, _, ending = base.partition(".")
    return os.path.join(folder, stem), ending.lower()


def _is_image(ending: str, named: str | None) -> bool:
    return ending == named.lower().lstrip(".") if named else os.path.splitext(f".x.{ending}")[1] in read_endings()


def _without_dot(name: str) -> str:
    """The name of a member without the "./" that `tar -C FOLDER .` writes, which would be the first folder of all."""
    while name.startswith("./"):
        name = name[2:]
    return name


def _refuse_outside(name: str, where: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{where} has a member outside of the archive, {shown(name)}; pack it anew with relative names")


def _bytes_of(shard: BinaryIO, info: tarfile.TarInfo) -> bytes:
    shard.seek(info.offset_data)
    return shard.read(info.size)


def _read_all(file: io.RawIOBase | Any, length: int) -> bytes:
    """`length` bytes from here on, fewer only at the end of the file; a network may hand them over in parts."""
    parts, missing = [], length
    while missing and (part := file.read(missing)):
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _bytes(texts: list[str]) -> NDArray:
    return np.frombuffer(json.dumps(texts).encode(), np.uint8)


def _texts(array: NDArray) -> list[str]:
    texts: list[str] = json.loads(array.tobytes())
    return texts
