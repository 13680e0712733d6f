"""Tables of paths and labels: what is read, in which order, and the mistakes in them."""

import csv
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data.datasets import read_dataset
from tests.helpers.images import class_folders, write_image
from utils.errors import UserError

ROWS = [("b/2.png", "dog"), ("a/1.png", "cat"), ("c 3.png", "dog"), ("a/0.jpg", "")]
MODES = {"b/2.png": "L", "a/1.png": "RGBA", "c 3.png": "I;16", "a/0.jpg": "CMYK"}


@pytest.fixture
def root(tmp_path):
    for name, mode in MODES.items():
        write_image(tmp_path / name, mode)
    return tmp_path


def table(root, rows, header=("path", "label"), name="train.csv"):
    if name.endswith(".parquet"):
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(header, map(list, columns), strict=True))), root / name)
    else:
        with (root / name).open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows([header, *rows])
    return str(root / name)


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.parquet"])
def test_read_dataset_reads_a_table_in_the_order_of_its_rows(root, name):
    data = read_dataset("custom", table(root, ROWS, name=name), None, None)
    assert data.train.names == [path for path, _ in ROWS]
    assert data.train.classes == ["cat", "dog"]
    assert data.train.labels.tolist() == [1, 0, 1, -1]
    assert [data.train.decode(i).shape for i in range(4)] == [(3, 16, 20)] * 4, "images of several modes"
    copy = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(copy.decode(1), data.train.decode(1))
    assert copy.names == data.train.names
    assert len(data.notes) == 1
    assert "1 of 4 images" in data.notes[0], "of 16 bits"


def test_a_table_beside_folders_is_found_and_its_validation_refers_to_its_classes(root):
    table(root, [("a/1.png", 3), ("b/2.png", 10)])
    table(root, [("c 3.png", 10)], name="val.csv")
    data = read_dataset("custom", str(root), None, None)
    assert (data.train.classes, data.val.labels.tolist()) == (["3", "10"], [1])
    other = read_dataset("cifar10", str(root), "train.csv", "val.csv")
    assert other.val.names == ["c 3.png"]
    table(root, [("c 3.png", 4)], name="val.csv")
    with pytest.raises(UserError, match=r"val.csv, column label: labels that the training images lack \(4\)"):
        read_dataset("custom", str(root), None, None)


def test_columns_are_named_by_flags_and_labels_left_out(root):
    path = table(root, [("x", *row) for row in ROWS[:3]], ("id", "where", "breed"))
    data = read_dataset("custom", path, None, None, image_column="where", label_column="breed")
    assert data.train.labels.tolist() == [1, 0, 1]
    data = read_dataset("custom", path, None, None, image_column="where")
    assert any("no column of labels was recognized in" in note for note in data.notes)
    data = read_dataset("custom", path, None, None, image_column="where", unlabelled=True)
    assert data.train.labels.tolist() == [-1] * 3
    assert [note for note in data.notes if "recognized" in note] == []


def test_fingerprint_of_a_table_is_that_of_equal_class_folders(tmp_path):
    root = class_folders(tmp_path / "x")
    rows = [(f"c{c}/{i}.png", f"c{c}") for c in range(2) for i in range(6)]
    from_table = read_dataset("custom", table(root, rows), None, None).train
    (root / "train.csv").unlink()
    assert from_table.fingerprint() == read_dataset("custom", str(root), None, None).train.fingerprint()


BROKEN = [
    ([("a/1.png", 1), ("b/2.png", 0.5)], "column label: the label 0.5 is not a whole number"),
    ([("a/1.png", "0|1|1"), ("b/2.png", "1|0|0")], "column label has 3 zeros and ones per image, not its labels"),
    ([("a/1.png", 0), ("b/2.png", -7)], "the label -7 is negative"),
    ([("a/1.png", 0), ("./a/1.png", 1)], r"rows 1 and 2 of .*train.csv name one file, ./a/1.png; remove one"),
    ([("a/1.png", 0), ("", 1)], "row 2 of .* names no file"),
    ([("gone.png", 0), ("b/2.png", 1)], r"1 of 2 files that .*train.csv names cannot be found \(gone.png\)"),
    ([("a/1.png", 0, "x")], "row 1 of .* has 3 cells, its header 2"),
    ([], "has no rows"),
]


@pytest.mark.parametrize(("rows", "message"), BROKEN, ids=[message[:20] for _, message in BROKEN])
def test_a_broken_table_is_one_line(root, rows, message):
    with pytest.raises(UserError, match=message) as e:
        read_dataset("custom", table(root, rows), None, None)
    assert len(str(e.value).splitlines()) == 1


def test_missing_columns_and_files_that_are_no_tables_are_one_line(root):
    path = table(root, ROWS, ("a", "b"))
    with pytest.raises(UserError, match="no column of images that can be recognized among a, b; name it with --image"):
        read_dataset("custom", path, None, None)
    with pytest.raises(UserError, match="has no column pth; it has a, b"):
        read_dataset("custom", path, None, None, image_column="pth")
    with pytest.raises(UserError, match="several columns of images: path, file; name one with --image_column"):
        read_dataset("custom", table(root, ROWS, ("path", "file")), None, None)
    (root / "train.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="train.csv cannot be read as a table .*UTF-8"):
        read_dataset("custom", path, None, None)
    (root / "train.csv").write_bytes(b"")
    with pytest.raises(UserError, match="train.csv is empty"):
        read_dataset("custom", path, None, None)
    (root / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="x.parquet cannot be read as Parquet"):
        read_dataset("custom", str(root / "x.parquet"), None, None)
    with pytest.raises(UserError, match="a/1.png is no file of images that is read; name a folder, or one of .csv"):
        read_dataset("custom", str(root / "a" / "1.png"), None, None)
    with pytest.raises(UserError, match="--image_column has no effect on .*, whose images are not in a table"):
        read_dataset("custom", str(root / "a"), None, None, image_column="x")


@pytest.mark.parametrize(("name", "join"), [("train.csv", "|".join), ("train.tsv", ";".join), ("train.parquet", list)])
def test_several_labels_of_an_image_are_a_matrix(root, name, join):
    labels = [["dog", "cat"], ["cat"], [], ["emu"]]
    rows = [(path, join(own)) for (path, _), own in zip(ROWS, labels, strict=True)]
    table(root, rows, name=name)
    table(root, [("a/1.png", "emu"), ("b/2.png", "")], name=name.replace("train", "val"))
    data = read_dataset("custom", str(root), None, None)
    assert data.train.label_sets.classes == ["cat", "dog", "emu"]
    assert data.label_sets("train").int().tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert data.label_sets("val").int().tolist() == [[0, 0, 1], [0, 0, 0]], "one label each, as the training images"
    assert (data.classes, data.train.labels.tolist(), data.val.labels.tolist()) == (0, [-1] * 4, [-1] * 2)
    assert any("have several labels, of 3 classes" in note for note in data.notes)
    table(root, [*rows[:3], (rows[3][0], join(["dog"]))], name=name)
    assert read_dataset("custom", str(root / name), None, None).train.fingerprint() != data.train.fingerprint()


def test_validation_images_alone_have_no_several_labels(root):
    table(root, ROWS[:2])
    table(root, [("c 3.png", "cat|dog")], name="val.csv")
    with pytest.raises(UserError, match="training images have one label each, validation images several"):
        read_dataset("custom", str(root), None, None)


def test_skip_leaves_out_the_labels_of_bad_files(root):
    (root / "a" / "1.png").write_bytes(b"text")
    path = table(root, [("b/2.png", "x|y"), ("a/1.png", "y"), ("c 3.png", "x")])
    assert read_dataset("custom", path, None, None, "skip").label_sets("train").tolist() == [
        [True, True],
        [True, False],
    ]


def test_skip_leaves_out_the_bad_files_of_a_table(root):
    (root / "a" / "1.png").write_bytes(b"text")
    path = table(root, [*ROWS[:3], ("a/0.jpg", "cat")])
    with pytest.raises(UserError, match=r"1 of 4 files in .* are not readable images \(a/1.png\)"):
        read_dataset("custom", path, None, None)
    data = read_dataset("custom", path, None, None, "skip")
    assert data.train.names == ["b/2.png", "c 3.png", "a/0.jpg"]
    assert data.train.labels.tolist() == [1, 1, 0]
    assert list(data.bad) == [str(root / "a" / "1.png")]
