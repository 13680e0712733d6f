"""Atomic files, JSON, rows of metrics.csv."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.disk import full_disk, largest_file
from utils.errors import UserError
from utils.files import (
    allocate,
    append_text,
    create_allocated,
    create_json,
    created_together,
    entry,
    last_value,
    read_json,
    read_metrics,
    replaced_atomically,
    typed_path,
    write_json,
    write_text_atomically,
)


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


def test_create_json_leaves_nothing_on_a_full_disk(tmp_path):
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        create_json(tmp_path / "a.json", {"a": "x" * 1000})
    assert not any(tmp_path.iterdir())


def test_full_disk_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with (
        largest_file(1000),
        pytest.raises(UserError, match=r"a.txt \(File too large\); free some space; what was there"),
    ):
        write_text_atomically(path, "x" * 2000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_folder_that_cannot_be_written_is_not_called_full(tmp_path, monkeypatch):
    def denied(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", denied)
    with pytest.raises(UserError, match=r"Permission denied\); name another file, or make"):
        write_text_atomically(tmp_path / "a.txt", "new")


def test_error_that_is_not_of_the_disk_passes_and_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), replaced_atomically(tmp_path / "a") as part:  # noqa: PT012
        part.write_text("half")
        raise RuntimeError("mine")
    assert not any(tmp_path.iterdir())


def test_names_that_are_no_utf8_are_written_as_they_are(tmp_path):
    write_text_atomically(tmp_path / "a.txt", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9"


def test_append_text_cuts_off_what_a_full_disk_left_of_it(tmp_path):
    path = tmp_path / "a.txt"
    append_text(path, "one\n")
    with largest_file(6), pytest.raises(UserError, match=r"a.txt \(File too large\)"):
        append_text(path, "two\n")
    assert path.read_text() == "one\n"
    append_text(path, "two\n")
    assert path.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("supported", [True, False])
def test_allocate_reserves_zero_blocks_behind_what_is_there(tmp_path, monkeypatch, supported):
    def unsupported(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not supported:
        monkeypatch.setattr("os.posix_fallocate", unsupported)
    with open(tmp_path / "x", "wb", buffering=0) as file:
        file.write(b"head")
        allocate(file.fileno(), 10**6)
    assert os.stat(tmp_path / "x").st_blocks * 512 >= 10**6
    assert (tmp_path / "x").read_bytes() == b"head" + bytes(10**6 - 4)


def test_create_allocated_on_a_full_disk_says_what_is_needed_and_leaves_nothing(tmp_path):
    with largest_file(10**6), pytest.raises(UserError, match=r"x \(File too large\); 2.00 GiB are needed; free some"):
        create_allocated(tmp_path / "x", 2**31)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("failing", [1, 2])
def test_created_together_makes_all_files_or_none(tmp_path, monkeypatch, failing):
    def write():
        with created_together(tmp_path / "net.onnx") as path:
            path.write_text("graph")
            path.with_suffix(".md").write_text("card")

    replace, calls = os.replace, []

    def fail_once(*args):
        calls.append(args)
        return replace(*args) if len(calls) < failing else full_disk()

    with monkeypatch.context() as m:
        m.setattr("os.replace", fail_once)
        with pytest.raises(UserError, match=r"net.onnx \(No space left on device\)"):
            write()
    assert not any(tmp_path.iterdir())
    write()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.md", "net.onnx"]
    with pytest.raises(UserError, match="net.md exists and is not overwritten"):
        write()


@pytest.mark.parametrize("text", ["[]", "null", "3", "[" * 10**5, "1" * 10**4, "\xff"])
def test_read_json_refuses_what_is_no_object(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.json cannot be read") as e:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(e.value)


def test_entry_names_what_is_missing_or_of_another_type(tmp_path):
    content = {"a": {"b": 3, "c": True}, "d": None}
    assert entry(tmp_path, content, "a.b", int) == 3
    cases = [
        ("a.x", int, "has no a.x"),
        ("d.x", int, "has no d.x"),
        ("a.b", str, "a.b is int, not str"),
        ("a.c", int, "a.c is bool, not int"),
    ]
    for key, kind, message in cases:
        with pytest.raises(UserError, match=f"damaged: .*{message}"):
            entry(tmp_path, content, key, kind)


@pytest.mark.parametrize("text", ["loss\n1\n", "step,loss\nx,1\n", "step,loss\n1,x\n", "\xff"])
def test_read_metrics_refuses_a_file_that_no_run_wrote(tmp_path, text):
    (tmp_path / "m.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"m.csv cannot be read"):
        read_metrics(tmp_path / "m.csv")


def test_read_metrics_leaves_out_a_last_row_without_its_end(tmp_path):
    (tmp_path / "m.csv").write_text("step,loss\n1,0.5\n2,0.25")  # of 0.251
    assert [row["step"] for row in read_metrics(tmp_path / "m.csv")] == ["1"]


@pytest.mark.parametrize("name", ["a" * 300, "~no-such-user-here/x"])
def test_typed_path_refuses_in_one_line_what_cannot_be_a_path(tmp_path, name):
    with pytest.raises(UserError, match="cannot be found") as e:
        typed_path(name)
    assert len(str(e.value).splitlines()) == 1
    assert typed_path(tmp_path / "gone") == tmp_path / "gone"
    assert typed_path("~") == Path.home()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_of_the_umask_whatever_library_writes_them(tmp_path, umask, mode):
    """safetensors writes files that only their owner may read; colleagues could not open a backbone."""
    path, before = tmp_path / "backbone.safetensors", os.umask(umask)
    try:
        for _ in range(2):
            with replaced_atomically(path) as part:
                save_file({"a": torch.zeros(1)}, part)
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
