"""Tests of the drawn tables: pages are what the ledger says, and numbers are means with deviations over seeds."""

import json
import re

import pytest

from evaluation.logistic import chosen_on
from results import draw, tables
from results.draw import (
    BLOCK,
    DRAWN,
    PAGES,
    cell,
    claims_table,
    drawn,
    labels_table,
    methods_table,
    peers_table,
    short_table,
    transfer_table,
)
from results.plots import FOLDER, PLOTS, claims_plot, methods_plot
from results.scores import values


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_a_page_are_what_the_ledger_says(page):
    assert page.read_text() == drawn(page), "run `make results`"


def test_every_table_is_on_a_page():
    names = {match[2] for page in PAGES for match in BLOCK.finditer(page.read_text())}
    assert names == set(DRAWN)


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_what_the_ledger_says(name, tmp_path):
    PLOTS[name](tmp_path / name)
    assert (FOLDER / name).exists() == (tmp_path / name).exists()
    if (tmp_path / name).exists():
        assert (FOLDER / name).read_text() == (tmp_path / name).read_text(), "run `make results`"


def test_records_say_how_they_were_made_and_name_no_folder_of_one_machine():
    for path in sorted(tables.LEDGER.glob("*/*.json")):
        record = json.loads(path.read_text())
        assert {"kind", "argv", "seed", "seconds", "data", "commit", "machine", "packages"} <= record.keys(), path
        assert re.fullmatch("[0-9a-f]{40}", record["commit"]), f"{path}: made with changes that no commit has"
        words = [word for word in record["argv"] if word.startswith("/")]
        assert not words, f"{path}: {words}"
        rows = record["rows"].values() if "rows" in record else [record]
        assert all(score["definition"] for row in rows for score in row["scores"].values()), path


def write(folder, name, record, table="methods"):
    (folder / table).mkdir(exist_ok=True)
    (folder / table / f"{name}.json").write_text(json.dumps(record))


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
    methods_plot(tmp_path / "plot.svg")
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


def test_claims_are_means_over_seeds_in_table_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    claims_plot(tmp_path / "claims.svg")
    assert not (tmp_path / "claims.svg").exists(), "no plot of nothing"
    for name, scores in {"simclr": (40.0, 42.0), "simclr_short": (36.0,), "supcon": (50.0, 51.0)}.items():
        for seed, knn in enumerate(scores):
            record = {"kind": "pretraining", "seconds": 100.0, "scores": {"knn_20": {"value": knn}}}
            write(tmp_path, f"{name}-s{seed}", record, "claims")
    assert claims_table().splitlines()[2] == "| SimCLR (`simclr`) | 2 | 41.0 ± 1.4 | 100 ± 0 |"
    claims_plot(tmp_path / "claims.svg")
    drawn_text = (tmp_path / "claims.svg").read_text()
    assert all(text in drawn_text for text in ("SimCLR", ">41.0<", ">50.5<", "epochs of 10,000 images"))
    assert drawn_text.count("FillBetweenPolyCollection") == 3, "bands of length, rate and batch"


def test_transfer_has_a_table_for_each_kind_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    assert "No run is in the ledger yet" in transfer_table()
    network = {"scores": {"knn_20": {"value": 90.0}, "fewshot_5/mean": {"value": 70.04}}}
    pixels = {"scores": {"knn_20": {"value": 95.0}}}
    record = {"kind": "evaluation", "rows": {"raw pixels": pixels, "b, simclr": network}}
    write(tmp_path, "simclr-digits-s0", record, "transfer")
    rows = {title: {"scores": {"knn_1": {"value": 30.0}}} for title in record["rows"]}
    write(tmp_path, "simclr-photographs-s1", record | {"rows": rows}, "transfer")
    lines = transfer_table().splitlines()
    assert [line.split("|")[1].strip() for line in lines if line] == [
        *("digits", "---", "SimCLR (`simclr`)", "raw pixels"),
        *("photographs", "---", "SimCLR (`simclr`)", "raw pixels"),
    ]
    assert lines[2] == "| SimCLR (`simclr`) | 1 | 90.0 | - | 70.0 | - |"


def test_logistic_regression_whose_penalty_was_chosen_in_another_way_is_left_out(tmp_path, monkeypatch):
    """Of 500 labels a fifth chose the penalty once; of 5,000 and of all 50,000 it still does."""
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    keys = ["knn_20", "logistic", "logistic_10pct", "logistic_1pct"]
    for seed, rows in enumerate((50_000, 500)):
        chosen = {key: {"penalty_c": 1.0, "chosen_on": chosen_on(rows)} for key in keys[1:]}
        chosen["logistic"]["chosen_on"] = chosen["logistic_10pct"]["chosen_on"] = chosen_on(50_000)
        row = {"scores": {key: {"value": 50.0 + seed} for key in keys}, "chosen": chosen}
        write(tmp_path, f"simclr-s{seed}-evaluated", {"data": {"train": {"images": 50_000}}, "rows": {"b": row}})
    assert values("methods", "simclr", ["-evaluated"]) == {key: [50.0, 51.0] for key in keys} | {
        "logistic_1pct": [51.0]
    }


def test_short_table_has_methods_with_the_settings_of_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    for name, knn in {"simclr": 50.0, "simclr_lightly": 60.0}.items():
        row = {"scores": {"knn_20": {"value": knn}}}
        write(tmp_path, f"{name}-s0-evaluated", {"rows": {name: row}})
    lines = short_table().splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["SimCLR (`simclr`)"]
    scratch = {"rows": {"test_resnet, untrained": {"scores": {"finetune": {"value": 76.0}}}}}
    write(tmp_path, "simclr-s0-finetuned", scratch, "labels")
    assert short_table().splitlines()[4] == "Ceiling, from scratch with all labels (50 epochs, one seed): 76.0 %."


def test_training_from_scratch_has_the_seeds_of_its_shares_of_the_labels(tmp_path, monkeypatch):
    """All labels were tried with one seed, and their number stands below the table."""
    monkeypatch.setattr(tables, "LEDGER", tmp_path)
    for seed, keys in enumerate((["finetune", "finetune_10pct"], ["finetune_10pct"])):
        rows = {
            title: {"scores": {key: {"value": value + seed} for key in keys}}
            for title, value in {"test_resnet, untrained": 50.0, "test_resnet, simclr": 60.0}.items()
        }
        write(tmp_path, f"simclr-s{seed}-finetuned", {"rows": rows}, "labels")
    assert labels_table().splitlines()[2:] == [
        "| SimCLR (`simclr`) | 2 | - | 60.5 ± 0.7 | - |",
        "| from scratch (supervised) | 2 | - | 50.5 ± 0.7 | - |",
        "",
        "Ceiling, from scratch with all labels (50 epochs, one seed): 50.0 %.",
    ]


def test_cell():
    assert [cell(None), cell([1.26]), cell([1, 2, 3], 0)] == ["-", "1.3", "2 ± 1"]
    assert draw.markdown(["a"], [["b"]]) == "| a |\n| --- |\n| b |\n"
