"""The benchmark: the results that it writes, the rows that it leaves out, the input that it refuses."""

import json
import os
import re
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import checkpoints, sizes, usual, views
from bench.rows import all_rows
from bench.sides import Settings, SideError
from bench.table import attempt, draw_digits, main, markdown, parse
from bench.task import QUARTER, Task, steady
from bench.train import build_method, read
from tests.helpers.commands import ROOT
from tests.helpers.images import class_folders
from tests.helpers.processes import CONTEXT, start_forkserver
from utils import shares
from utils.errors import UserError


@pytest.fixture
def photographs(tmp_path):
    folder = class_folders(tmp_path / "photographs", size=(60, 50))
    for file in folder.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    return folder


def test_main_writes_measured_rows_and_names_the_flag_of_the_others(tmp_path, monkeypatch, capsys):
    rows = ["--rows", "views-32-v2", "decode"]
    few = ["--rounds", "2", "--seconds", "0.01", "--output", str(tmp_path / "x.json")]
    start_forkserver()
    monkeypatch.setattr("bench.sides.mp.get_context", lambda method: CONTEXT)  # without the time that imports take
    main([*rows, *few])
    printed = capsys.readouterr().out
    assert re.search(r"decode +left out: needs --photographs FOLDER", printed)
    assert "python3 -m bench --rows views-32-v2" in printed
    out = json.loads((tmp_path / "x.json").read_text())
    assert out["left_out"] == {"decode": "needs --photographs FOLDER"}
    assert {"commit", "date", "device", "packages", "peers"} <= set(out)
    (row,) = out["rows"]
    assert (row["name"], row["command"]) == ("views-32-v2", "python3 -m bench --rows views-32-v2")
    assert [set(r) for r in row["rounds"]] == [{"ours", "theirs"}] * 2
    assert row["ratio"] == pytest.approx(statistics.mean(r["ours"] / r["theirs"] for r in row["rounds"]))
    for side in (row["ours"], row["theirs"]):
        assert side["what"]
        assert side["median"] > 0
        assert not os.path.exists("/proc/self/smaps_rollup") or side["host_peak_bytes"] > 2**26
    assert row["ours"]["mean_difference"] < 1


def test_missing_names_the_folder_or_library_that_a_row_needs(monkeypatch):
    rows, nothing = all_rows(), Settings(None, None, 0.0)
    assert rows["decode"].missing(nothing) == "needs --photographs FOLDER"
    assert rows["knn"].missing(nothing) is None
    monkeypatch.setattr("bench.rows.find_spec", lambda name: None)
    complete = Settings(Path(), Path(), 0.0)
    assert rows["views-224-dali"].missing(complete).startswith("DALI is not installed: pip install -r")
    assert rows["train-32-lightly"].missing(complete).startswith("Lightly is not installed: pip install -r")
    assert rows["train-32"].missing(complete) is None


def test_attempt_of_a_row_that_fails_gives_the_reason(monkeypatch):
    def killed(*args):
        raise SideError("Traceback ...\n  ...\nValueError: no")

    monkeypatch.setattr("bench.table.Side", killed)
    assert attempt(all_rows()["knn"], Settings(None, None, 0.0), 1) == ({}, "it failed: ValueError: no")


def test_parse_refuses_an_unknown_row_and_lists_all():
    names = list(all_rows())
    with pytest.raises(UserError, match=r"unknown row 'decod' \(did you mean decode.*choose from decode, views-32-v1"):
        parse(["--rows", "decod"], names)
    with pytest.raises(UserError, match="--cifar nowhere is not a folder of class folders"):
        parse(["--cifar", "nowhere"], names)


def test_decode_gives_the_pixels_of_the_baseline(photographs):
    settings = Settings(photographs, None, 0.0)
    lookalike, baseline = views.decode(settings), usual.decode(settings)
    assert min(lookalike.round(), baseline.round()) > 0
    assert lookalike.facts() == {"largest_difference": 0}


def test_read_gives_the_run_that_the_baselines_train(tmp_path):
    task = Task("--method simclr", 64, 8)
    args, plan, data = read(Settings(None, draw_digits(tmp_path), 0.0), task)
    settings = (plan.backbone.stem, plan.views.large_size, plan.batch.batch_size, plan.views.blur)
    assert settings == ("small", 32, 64, (0.0,))
    assert (args.hidden_mlp, args.proj_dim) == (usual.HIDDEN, usual.EMBEDDING)
    assert (len(data.train), data.classes) == (1797, 10)


@pytest.mark.parametrize("method", ["clusterfit", "distill"])
def test_side_of_a_method_makes_the_files_that_the_method_requires(tmp_path, method):
    task = all_rows()[f"step-{method}"].ours[1].keywords["task"]
    args, plan, data = read(Settings(None, draw_digits(tmp_path), 0.0), task)
    built = build_method(args, plan, data, task)
    if method == "distill":
        assert (built.teacher.dim, built.large_views) == (512, 1)
    else:
        assert (len(built.ids), int(built.ids.max()), built.head.out_features) == (1797, 999, 1000)


@pytest.mark.slow
def test_round_with_a_save_writes_a_checkpoint_and_tells_what_it_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MINUTE", 0.0)
    settings, task = Settings(None, draw_digits(tmp_path), 0.0), Task("--method simclr", 2, 10**6, network=QUARTER)
    with_save, without = (checkpoints.minute(settings, task, save) for save in (True, False))
    assert min(with_save.round(), without.round()) > 0
    facts = with_save.facts()
    assert facts["seconds_blocked"] > 0
    assert facts["checkpoint_bytes"] > 2**20
    assert set(without.facts()) == {"precision"}


def test_nt_xent_of_the_baseline_is_the_loss_of_simclr():
    from methods.simclr import nt_xent

    a, b = torch.randn(2, 5, 8, dtype=torch.double)
    torch.testing.assert_close(usual.nt_xent(torch.cat([a, b]), 0.2), nt_xent([a, b], 0.2)["loss"])


def test_steady_takes_no_more_batches_than_it_counts():
    batches, seen = iter(range(10)), []
    seconds, wait = steady(batches, 2, 3, seen.append)
    assert (seen, next(batches)) == ([0, 1, 2, 3, 4], 5)
    assert seconds > 0
    assert 0 <= wait <= 1
    ticks = iter(range(100))
    assert steady(iter(range(10)), 2, 3, clock=lambda: next(ticks)) == [6, 0.5]


def test_markdown_of_the_results_is_the_table_of_the_docs():
    out = json.loads((ROOT / "bench" / "results" / "cpu-2-cores.json").read_text())
    assert markdown(out) in (ROOT / "docs" / "performance.md").read_text()


def test_table_of_sizes_in_the_documents_is_what_the_formulas_give():
    page = (ROOT / "docs" / "performance.md").read_text()
    assert sizes.table(sizes.IMAGENET, sizes.MILLIONS) in page


def test_sizes_know_the_parts_and_shares_of_the_program():
    assert sizes.PART == shares.PART
    few = sizes.Problem("few", 10_000, 2**14, 10, 5, 3, 3)
    x = torch.empty(few.n, few.d, device="meta")
    most = max(len(shares.share(shares.part_count(x), number, few.ranks)) for number in range(few.ranks))
    assert sizes.largest_share(few) == most * 2**10
