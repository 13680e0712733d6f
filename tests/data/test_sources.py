"""Which reader a path asks for, --unlabelled, and folders that look like dates."""

import pytest

from data.datasets import read_dataset
from tests.helpers.images import class_folders, write_image
from utils.errors import UserError


def read(path, *dirs, **flags):
    return read_dataset("custom", str(path), *(dirs or (None, None)), **flags)


def test_unlabelled_takes_every_image_below_a_folder(tmp_path):
    class_folders(tmp_path / "a", classes=2, each=2)
    write_image(tmp_path / "b" / "deep" / "1.png")
    data = read(tmp_path, unlabelled=True)
    assert data.train.names == ["a/c0/0.png", "a/c0/1.png", "a/c1/0.png", "a/c1/1.png", "b/deep/1.png"]
    assert (data.train.labels.tolist(), data.classes) == ([-1] * 5, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images"):
        read(tmp_path / "empty", unlabelled=True)


def test_folders_that_look_like_dates_are_told_before_they_become_classes(tmp_path):
    for name in ("2019", "2020-07", "20210731"):
        write_image(tmp_path / name / "1.png")
    (note,) = read(tmp_path).notes
    assert "the classes are the folders 2019, 2020-07, 20210731" in note
    assert note.endswith("if they are no classes, pass --unlabelled")
    write_image(tmp_path / "cats" / "1.png")
    assert read(tmp_path).notes == []


def test_flags_that_have_no_effect_are_refused(tmp_path):
    for flags in ({"unlabelled": True}, {"image_column": "a"}, {"label_column": "a"}):
        with pytest.raises(UserError, match="has no effect on digits, which is not read from image files; remove it"):
            read_dataset("digits", "none", None, None, **flags)
    class_folders(tmp_path)
    with pytest.raises(UserError, match="--label_column has no effect on .*, whose images are not in a table"):
        read(tmp_path, label_column="a")


def test_class_folders_beside_a_folder_of_parquet_files_are_read(tmp_path):
    class_folders(tmp_path / "train")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.parquet").write_bytes(b"")
    (tmp_path / "state.json").write_text("{}")
    assert read(tmp_path).train.classes == ["c0", "c1"]


def test_a_file_has_no_training_folder_and_its_validation_lies_beside_it(tmp_path):
    write_image(tmp_path / "1.png")
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text("path,label\n1.png,a\n")
    assert len(read(tmp_path / "train.csv", None, "dev.csv").val) == 1
    with pytest.raises(UserError, match="train.csv is a file, so --train_dir has no effect; remove it"):
        read(tmp_path / "train.csv", "x", None)
    with pytest.raises(UserError, match="no validation images of custom: --val_dir .*gone.csv"):
        read(tmp_path / "train.csv", None, "gone.csv")
