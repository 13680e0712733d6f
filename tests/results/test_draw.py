"""Tests of the drawn tables: pages are what the ledger says, and numbers are means with deviations over seeds."""

import json
import re

import pytest

from results import draw, tables
from results.draw import BLOCK, DRAWN, PAGES, cell, drawn, ledger_files, methods_table, peers_table, plot
from results.tables import ROOT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_a_page_are_what_the_ledger_says(page):
    assert page.read_text() == drawn(page), "run `make results`"


def test_every_table_is_on_a_page():
    names = {match[2] for page in PAGES for match in BLOCK.finditer(page.read_text())}
    assert names == set(DRAWN)


def test_plot_is_what_the_ledger_says(tmp_path):
    plot(tmp_path / "methods.svg")
    written = ROOT / "docs" / "images" / "methods.svg"
    assert written.exists() == (tmp_path / "methods.svg").exists()
    if written.exists():
        assert written.read_text() == (tmp_path / "methods.svg").read_text(), "run `make results`"


def test_records_say_how_they_were_made_and_name_no_folder_of_one_machine():
    for path in ledger_files():
        record = json.loads(path.read_text())
        assert {"kind", "argv", "seed", "seconds", "data", "commit", "machine", "packages"} <= record.keys(), path
        assert re.fullmatch("[0-9a-f]{40}", record["commit"]), f"{path}: made with changes that no commit has"
        words = [word for word in record["argv"] if word.startswith("/")]
        assert not words, f"{path}: {words}"
        rows = record["rows"].values() if "rows" in record else [record]
        assert all(score["definition"] for row in rows for score in row["scores"].values()), path


def write(folder, name, record):
    (folder / "methods").mkdir(exist_ok=True)
    (folder / "methods" / f"{name}.json").write_text(json.dumps(record))


def test_table_has_the_mean_and_deviation_of_each_row_best_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    assert "No run is in the ledger yet" in methods_table()
    for name, scores in {"simclr": (50.0, 52.0), "nnclr": (53.0,)}.items():
        for seed, knn in enumerate(scores):
            row = {"scores": {"knn_20": {"value": knn, "definition": "x"}}}
            pixels = {"scores": {"knn_20": {"value": 36.0, "definition": "x"}}}
            write(tmp_path, f"{name}-s{seed}", {"kind": "pretraining", "seconds": 600.0, "scores": {}})
            write(tmp_path, f"{name}-s{seed}-evaluated", {"rows": {"raw pixels": pixels, f"b, {name}": row}})
    lines = methods_table().splitlines()
    assert [line.split("|")[1:5] for line in lines[2:5]] == [
        [" NNCLR (`nnclr`) ", " 1 ", " 53.0 ", " - "],
        [" SimCLR (`simclr`) ", " 2 ", " 51.0 ± 1.4 ", " - "],
        [" raw pixels ", " 2 ", " 36.0 ± 0.0 ", " - "],
    ]
    plot(tmp_path / "plot.svg")
    assert "NNCLR" in (tmp_path / "plot.svg").read_text()


def test_peers_stand_beside_the_rows_of_the_same_method(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    (tmp_path / "peers").mkdir()
    scores = {"scores": {"knn_20": {"value": 50.0, "definition": "x"}}}
    write(tmp_path, "nnclr-s0-evaluated", {"rows": {"b, nnclr": scores}})
    assert "No run is in the ledger yet" in peers_table()
    for name, record in (("", {"kind": "peer", "seconds": 9.0}), ("-evaluated", {"rows": {"b": scores}})):
        (tmp_path / "peers" / f"lightly-nnclr-s0{name}.json").write_text(json.dumps(record))
    assert peers_table().splitlines()[2:] == [
        "| NNCLR | Lookalike | 1 | 50.0 | - | - |",
        "| NNCLR | Lightly | 1 | 50.0 | - | 9 |",
    ]


def test_cell():
    assert [cell(None), cell([1.26]), cell([1, 2, 3], 0)] == ["-", "1.3", "2 ± 1"]
    assert draw.markdown(["a"], [["b"]]) == "| a |\n| --- |\n| b |\n"
