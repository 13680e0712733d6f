"""Long lists of names and files in a few arrays: a million take tens of megabytes, which worker processes share."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2**14  # names of which the places are numbers of Python


class Names(Sequence[str]):
    """Names in one block of bytes: a third of the memory of a list, shared by forked workers."""

    def __init__(self, names: Iterable[str]):
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]  # names of files need not be UTF-8
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._text = b"".join(encoded)

    @staticmethod
    def concatenate(lists: Sequence["Names"]) -> "Names":
        """The names of all lists, one after the other."""
        names, lengths = Names([]), [np.diff(x._ends) for x in lists]
        names._text = b"".join(x._text for x in lists)
        names._ends = np.cumsum(np.concatenate([names._ends, *lengths]))
        return names

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self._text[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), AT_ONCE):  # Python's own numbers are faster than NumPy's, and larger
            ends = self._ends[first : first + AT_ONCE + 1].tolist()
            for start, end in zip(ends, ends[1:], strict=False):
                yield self._text[start:end].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def take(self, rows: Iterable[int]) -> "Names":
        """The names of some rows."""
        return Names(self[i] for i in rows)


class RowNames(Sequence[str]):
    """The names of images that have none: their row numbers, "0" first. rows: the numbers, where some are left out."""

    def __init__(self, rows: Sequence[int] | NDArray):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        return [str(row) for row in self._rows[i]] if isinstance(i, slice) else str(self._rows[i])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def take(self, rows: Iterable[int]) -> "RowNames":
        """The names of some rows."""
        return RowNames([self._rows[i] for i in rows])


class ImageFile(NamedTuple):
    """A found file: its path relative to the root, its bytes, and when it was last written."""

    name: str
    size: int
    mtime_ns: int


class FileList(Sequence[ImageFile]):
    """Image files; sizes, mtimes: (N,) int64 bytes and nanoseconds."""

    def __init__(self, names: Names, sizes: NDArray, mtimes: NDArray):
        self.names, self.sizes, self.mtimes = names, sizes, mtimes

    @staticmethod
    def of(files: Sequence[ImageFile]) -> "FileList":
        """The list of these files; `files` itself where it is a FileList."""
        if isinstance(files, FileList):
            return files
        sizes, mtimes = (np.array([file[k] for file in files], dtype=np.int64) for k in (1, 2))
        return FileList(Names(file.name for file in files), sizes, mtimes)

    @staticmethod
    def concatenate(lists: Sequence["FileList"]) -> "FileList":
        """The files of all lists, one after the other."""
        if len(lists) == 1:
            return lists[0]
        none = np.zeros(0, np.int64)
        sizes, mtimes = (np.concatenate([none, *(getattr(x, name) for x in lists)]) for name in ("sizes", "mtimes"))
        return FileList(Names.concatenate([x.names for x in lists]), sizes, mtimes)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, i: int) -> ImageFile: ...
    @overload
    def __getitem__(self, i: slice) -> list[ImageFile]: ...
    def __getitem__(self, i: int | slice) -> ImageFile | list[ImageFile]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return ImageFile(self.names[i], int(self.sizes[i]), int(self.mtimes[i]))

    def __iter__(self) -> Iterator[ImageFile]:
        return map(ImageFile, self.names, self.sizes.tolist(), self.mtimes.tolist())
