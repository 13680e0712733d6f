"""Tests of the table: titles from keys, alignment, missing scores."""

import json

import pytest

from evaluation.table import column_title, report, table
from tests.helpers.images import read
from utils.scores import ResultRow, Score


@pytest.mark.parametrize(
    ("score", "title"),
    [
        (Score("knn_20", 1), "kNN 20"),
        (Score("logistic", 1), "logistic"),
        (Score("linear_sgd", 1), "linear (SGD)"),
        (Score("linear_sgd_1pct", 1), "linear (SGD), 1 % of labels"),
        (Score("finetune_0.5pct", 1), "fine-tuned, 0.5 % of labels"),
        (Score("fewshot_5", 1, deviation=2, labelled_images=50), "5-shot (50 labels)"),
        (Score("quality/rankme", 1, unit=""), "RankMe"),
        (Score("cluster/nmi", 1, unit=""), "NMI"),
    ],
)
def test_column_title_is_made_from_the_key(score, title):
    assert column_title(score) == title


def rows():
    std = Score("quality/std", 0.01234, unit="")
    few = Score("fewshot_5", 84.56, deviation=3.06, labelled_images=50)
    return [ResultRow("raw", "raw pixels", "", "", [Score("knn_5", 50.0)]),
            ResultRow("net", "b", "simclr", "digits", [Score("knn_5", 60.0), std, few], seed="1", run="r")]  # fmt: skip


def test_table_aligns_columns_and_marks_missing_scores():
    lines = table(rows()).splitlines()
    assert lines[2].split() == ["raw", "50.0", "-", "-"]
    assert lines[3].split() == ["net,", "simclr,", "seed", "1,", "r", "60.0", "0.0123", "84.6", "+-", "3.1"]
    assert len({len(line) for line in lines}) == 1


def test_report_prints_the_table_and_writes_the_summary(tmp_path, capsys):
    report("digits", read(), rows(), tmp_path, {"argv": ["x"]})
    assert "digits: 1,438 training images, 359 validation images" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["net"]["scores"]["fewshot_5/std"] == 3.06
    assert summary["raw"]["scores"] == {"knn_5": 50.0}
    written = json.loads((tmp_path / "args.json").read_text())
    assert written["argv"] == ["x"]
    assert "packages" in written
    lines = json.loads((tmp_path / "table.json").read_text())["lines"]
    assert lines[0] == ["", "kNN 5", "std", "5-shot (50 labels)"]
    assert lines[2] == [rows()[1].label, "60.0", "0.0123", "84.6 +- 3.1"]


def test_report_prints_no_table_of_files(tmp_path, capsys):
    report("digits", read(), [ResultRow("net", "b", "", "")], tmp_path, {})
    assert capsys.readouterr().out.split() == [str(tmp_path)]
