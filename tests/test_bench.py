"""The benchmark's command: what it writes, what it leaves out, what it refuses. Not what it measures."""

import json
import os
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import usual, views
from bench.rows import all_rows
from bench.sides import Settings, SideError
from bench.table import attempt, draw_digits, markdown, parse
from bench.task import Quarter, Task, steady
from bench.train import read
from tests.helpers.commands import ROOT, start
from tests.helpers.images import class_folders
from utils.errors import UserError


@pytest.fixture
def photographs(tmp_path):
    folder = class_folders(tmp_path / "photographs", size=(60, 50))
    for file in folder.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    return folder


def test_the_command(tmp_path):
    """A row is written with both sides, and what is missing is named with the flag that brings it."""
    words = ["--rows", "views-32-v2", "decode"]
    few = ["--rounds", "2", "--seconds", "0.01", "--output", str(tmp_path / "x.json")]
    said, _ = start(["-m", "bench", *words, *few]).communicate()
    assert "decode                            left out: --photographs FOLDER brings it" in said
    assert "python3 -m bench --rows views-32-v2" in said
    out = json.loads((tmp_path / "x.json").read_text())
    assert out["left_out"] == {"decode": "--photographs FOLDER brings it"}
    assert {"commit", "date", "memory", "packages", "peers"} <= set(out)
    (row,) = out["rows"]
    assert (row["name"], row["command"]) == ("views-32-v2", "python3 -m bench --rows views-32-v2")
    assert [set(r) for r in row["rounds"]] == [{"ours", "theirs"}] * 2
    assert row["ratio"] == pytest.approx(statistics.mean(r["ours"] / r["theirs"] for r in row["rounds"]))
    for side in (row["ours"], row["theirs"]):
        assert side["what"]
        assert side["median"] > 0
        assert not os.path.exists("/proc/self/smaps_rollup") or side["host_peak_bytes"] > 2**26
    assert row["ours"]["mean_difference"] < 1


def test_a_row_without_its_folder_or_library_is_left_out_with_the_remedy(monkeypatch):
    rows, nothing = all_rows(), Settings(None, None, 0.0)
    assert rows["decode"].missing(nothing) == "--photographs FOLDER brings it"
    assert rows["knn"].missing(nothing) is None
    monkeypatch.setattr("bench.rows.find_spec", lambda name: None)
    there = Settings(Path(), Path(), 0.0)
    assert rows["views-224-dali"].missing(there).startswith("DALI is not installed: pip install -r")
    assert rows["train-32-lightly"].missing(there).startswith("Lightly is not installed: pip install -r")
    assert rows["train-32"].missing(there) is None


def test_a_row_that_fails_is_left_out_with_its_reason(monkeypatch):
    def killed(*args):
        raise SideError("Traceback ...\n  ...\nValueError: no")

    monkeypatch.setattr("bench.table.Side", killed)
    assert attempt(all_rows()["knn"], Settings(None, None, 0.0), 1) == ({}, "it failed: ValueError: no")


def test_an_unknown_row_is_one_line_with_all_rows():
    names = list(all_rows())
    with pytest.raises(UserError, match=r"unknown row 'decod' \(did you mean decode.*choose of decode, views-32-v1"):
        parse(["--rows", "decod"], names)
    with pytest.raises(UserError, match="--cifar nowhere is not a folder of class folders"):
        parse(["--cifar", "nowhere"], names)


def test_photographs_are_decoded_alike_on_both_sides(photographs):
    settings = Settings(photographs, None, 0.0)
    ours, theirs = views.decode(settings), usual.decode(settings)
    assert min(ours.round(), theirs.round()) > 0
    assert ours.facts() == {"largest_difference": 0}


def test_a_task_is_the_same_run_on_both_sides(tmp_path):
    task = Task("--method simclr", 64, 8)
    args, data = read(Settings(None, draw_digits(tmp_path), 0.0), task)
    assert (args.used_stem, args.large_size, args.batch_size, args.blur) == ("small", 32, 64, [0.0])
    assert (args.hidden_mlp, args.proj_dim) == (usual.HIDDEN, usual.EMBEDDING)
    assert (len(data.train), data.classes) == (1797, 10)


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_a_quarter_of_resnet18(stem):
    whole, width = Task("", 2, 1, stem=stem).backbone()
    quarter = Quarter(stem)
    assert quarter(torch.zeros(2, 3, 32, 32)).shape == (2, width // 4)
    for name, p in whole.named_parameters():
        assert p.shape[0] == 4 * quarter.get_parameter(name).shape[0], name


def test_the_loss_of_the_plain_loop_is_ours():
    from methods.simclr import nt_xent

    a, b = torch.randn(2, 5, 8, dtype=torch.double)
    torch.testing.assert_close(usual.nt_xent(torch.cat([a, b]), 0.2), nt_xent([a, b], 0.2)["loss"])


def test_steady_takes_no_more_batches_than_it_counts():
    batches, seen = iter(range(10)), []
    seconds, wait = steady(batches, 2, 3, seen.append)
    assert (seen, next(batches)) == ([0, 1, 2, 3, 4], 5)
    assert seconds > 0
    assert 0 <= wait <= 1


def test_the_docs_have_the_table_that_was_measured():
    """And nothing in it was typed by hand."""
    out = json.loads((ROOT / "bench" / "results" / "cpu-2-cores.json").read_text())
    assert markdown(out) in (ROOT / "docs" / "performance.md").read_text()
