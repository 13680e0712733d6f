"""metrics.csv, and who has loggers."""

import pytest

from runs.loggers import MetricsCSV, build_loggers, log_results
from tests.helpers.disk import full_disk, largest_file
from utils.errors import UserError
from utils.files import read_metrics
from utils.plan import DashboardConfig
from utils.scores import ResultRow, Score

ROWS = [ResultRow("run", "resnet18", "nnclr", "digits", [Score("knn_20", 50.0)])]


def test_metrics_csv_has_a_row_per_point_and_a_column_per_metric(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"loss": 1.5, "epoch": 0}, 9)
    log.log_metrics({"knn_20": 50.0, "epoch": 0}, 10)
    log.log_metrics({"loss": 1.25, "epoch": 1}, 19)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,loss,epoch,knn_20", "9,1.5,0,", "10,,0,50.0", "19,1.25,1,",
    ]  # fmt: skip


def test_metrics_csv_truncates_the_rows_that_a_resumed_run_writes_again(tmp_path):
    log = MetricsCSV(tmp_path)
    for step in range(5):
        log.log_metrics({"loss": float(step)}, step)
    again = MetricsCSV(tmp_path)
    again.truncate_from_step(3)
    again.log_metrics({"loss": 30.0}, 3)
    assert [row["loss"] for row in read_metrics(again.path)] == ["0.0", "1.0", "2.0", "30.0"]


def test_only_the_first_rank_opens_a_dashboard(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    loggers = build_loggers(DashboardConfig(True, "n", "p", None, False), {}, tmp_path, resumed=False)
    assert [type(logger) for logger in loggers] == [MetricsCSV]
    assert capsys.readouterr().out == ""
    assert not any(tmp_path.iterdir())


def test_rows_that_a_full_disk_cut_off_wait_and_are_written_with_the_next_one(tmp_path, capsys):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"loss": 1.0}, 0)
    before = log.path.read_text()
    with largest_file(len(before) + 3):  # three bytes of the row fit
        for step in (1, 2):
            log.log_metrics({"loss": 1.0}, step)
        assert log.path.read_text() == before, "no half row"
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1, "said once"
        assert "metrics.csv (File too large); free some space" in printed
    log.log_metrics({"loss": 1.0}, 3)
    assert [row["step"] for row in read_metrics(log.path)] == ["0", "1", "2", "3"]
    assert capsys.readouterr().out == ""


def test_rows_with_a_new_column_wait_too(tmp_path, monkeypatch, capsys):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"loss": 1.0}, 0)
    with monkeypatch.context() as m:
        m.setattr("os.fsync", full_disk)
        log.log_metrics({"loss": 2.0, "knn_20": 50.0}, 1)
        log.log_metrics({"loss": 3.0}, 2)
        log.finalize("success")
    assert "2 rows wait in memory" in capsys.readouterr().out.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
    assert len(read_metrics(log.path)) == 1
    log.finalize("success")
    assert [row["knn_20"] for row in read_metrics(log.path)] == ["", "50.0", ""]


def test_rows_that_a_resumed_run_makes_again_are_dropped_as_soon_as_there_is_room(tmp_path, monkeypatch):
    log = MetricsCSV(tmp_path)
    for step in range(5):
        log.log_metrics({"loss": float(step)}, step)
    again = MetricsCSV(tmp_path)
    with monkeypatch.context() as m:
        m.setattr("os.fsync", full_disk)
        again.truncate_from_step(0)
        again.log_metrics({"loss": 30.0}, 0)
    again.log_metrics({"loss": 31.0}, 1)
    assert [row["loss"] for row in read_metrics(log.path)] == ["30.0", "31.0"]


def test_final_numbers_that_cannot_be_written_are_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*metrics.csv \(No space left on device\)"):
        log_results(DashboardConfig(False, "n", "p", None, False), {"name": "n"}, tmp_path, ROWS)
    assert not any(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
