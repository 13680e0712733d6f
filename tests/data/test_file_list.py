"""Lists of names and files in arrays."""

import pickle

import numpy as np
import pytest

import data.file_list
from data.file_list import FileList, ImageFile, Names, RowNames

NAMES = ["a.png", "", "é/漢\n.png", "\udcff\udcfe.png", "a.png"]


def test_names_are_a_sequence_in_little_memory():
    names = Names(NAMES)
    assert list(names) == NAMES == names
    assert (names[-1], names[1:3], len(names), "\udcff\udcfe.png" in names) == ("a.png", NAMES[1:3], 5, True)
    assert names.take([2, 0]) == [NAMES[2], NAMES[0]]
    assert names != NAMES[:4]
    with pytest.raises(IndexError):
        names[5]
    many = Names(f"class_{i % 10}/image_{i:06}.jpg" for i in range(10_000))
    assert len(pickle.dumps(many)) < 40 * 10_000, "24 bytes of a name and 8 of its position"


@pytest.mark.parametrize("at_once", [1, 2, 4, 5, 6])
def test_names_are_iterated_in_parts(monkeypatch, at_once):
    monkeypatch.setattr(data.file_list, "AT_ONCE", at_once)
    assert list(Names(NAMES)) == NAMES
    assert list(Names([])) == []


def test_file_list_keeps_nanoseconds_and_is_concatenated():
    files = [ImageFile("b", 2**40, 1_700_000_000_123_456_789), ImageFile("a", 0, 1)]
    both = FileList.concatenate([FileList.of(files), FileList.of([]), FileList.of(files[:1])])
    assert list(both) == [*files, files[0]]
    assert (both[1], both[:2]) == (files[1], files)
    assert len(FileList.concatenate([])) == 0
    assert both.mtimes.dtype == np.int64


def test_row_names_are_the_numbers_of_rows():
    assert RowNames(range(3)) == ["0", "1", "2"]
    assert RowNames(np.array([4, 7, 9])).take(np.array([2, 0])) == ["9", "4"]
    assert RowNames(range(9))[7:] == ["7", "8"]
