"""metrics.csv, and who has loggers."""

from runs.loggers import MetricsCSV, build_loggers
from utils.files import read_metrics
from utils.plan import DashboardConfig


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
