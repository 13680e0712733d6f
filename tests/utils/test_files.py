"""Atomic files, JSON, rows of metrics.csv."""

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import create_json, last_value, read_json, read_metrics, typed_path, write_json, write_text_atomically


def test_write_text_atomically_keeps_the_old_file_when_moving_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="No space"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"


def test_read_json_names_the_file_that_is_missing_or_damaged(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json does not exist"):
        read_json(path)
    path.write_text('{"a": 1')
    with pytest.raises(UserError, match=r"x\.json cannot be read"):
        read_json(path)
    write_json(path, {"a": tmp_path})
    assert read_json(path) == {"a": str(tmp_path)}


def test_last_value_skips_rows_without_the_metric(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,knn_20\n9,1.5,\n10,,50.0\n19,1.25,\n")
    rows = read_metrics(path)
    assert (last_value(rows, "loss"), last_value(rows, "knn_20"), last_value(rows, "lr")) == (1.25, 50.0, None)


def test_read_metrics_leaves_out_a_row_cut_off_by_a_crash(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == []
    path.write_text("step,loss,lr\n0,1.0,0.1\n1,2.")
    assert len(read_metrics(path)) == 1


def test_create_json_leaves_an_existing_file(tmp_path):
    create_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(FileExistsError):
        create_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("name", ["a" * 300, "~no-such-user-here/x"])
def test_typed_path_refuses_in_one_line_what_cannot_be_a_path(tmp_path, name):
    with pytest.raises(UserError, match="cannot be found") as e:
        typed_path(name)
    assert len(str(e.value).splitlines()) == 1
    assert typed_path(tmp_path / "gone") == tmp_path / "gone"
    assert typed_path("~") == Path.home()
