"""TensorBoard: what its own reader finds in the files."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from runs.loggers import TruncateMetricsOnResume
from runs.tensorboard import FOLDER, TensorBoard
from tests.helpers.dashboard_files import scalars
from utils.errors import UserError
from utils.scores import ResultRow, Score

pytest.importorskip("tensorboard", reason="requirements-tensorboard.txt is not installed")


def written(folder, first):
    """A run of three steps from `first` on."""
    board = TensorBoard({"lr": 0.3}, folder)
    for step in range(first, first + 3):
        board.log_metrics({"loss": float(step), "knn_20": 90.0, "epoch": 0}, step)
    board.log_pictures([folder / "curves.png"], first)
    board.finalize("success")


def test_metrics_are_in_groups_and_a_resumed_run_goes_on_without_what_it_makes_again(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    written(tmp_path, 0)
    written(tmp_path, 2)
    found = scalars(tmp_path / FOLDER)
    assert found["train/loss"] == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
    assert found["knn/20"].keys() == found["epoch"].keys() == {0, 1, 2, 3, 4}
    assert 2 in found["picture curves"]


def test_table_and_summary_are_texts(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,3.0\n1,2.0\n2,2.5\n")
    board = TensorBoard({"name": None}, tmp_path)
    board.log_table([ResultRow("net", "resnet18", "nnclr", "digits", [Score("knn_20", 50.0)])])
    board.finalize("success")
    content = next((tmp_path / FOLDER).iterdir()).read_bytes()
    assert b"| net | resnet18 | nnclr | digits | 50.0 |" in content
    assert b"| best/train/loss | 2.0 |" in content
    assert b"| name | None |" in content


def test_error_while_writing_is_said_once_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    board = TensorBoard({}, tmp_path)
    for step in range(3):
        board.log_metrics({"loss": 1.0}, step)
    board.finalize("success")
    assert capsys.readouterr().out.count("TensorBoard is off from here") == 1


def test_missing_package_names_its_requirement_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"--tensorboard needs .*requirements-tensorboard.txt"):
        TensorBoard({}, tmp_path)


def test_points_between_the_resume_and_its_first_point_are_dropped(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    written(tmp_path, 0)
    board = TensorBoard({}, tmp_path)
    trainer = SimpleNamespace(loggers=[board], global_step=1)
    TruncateMetricsOnResume().on_train_start(trainer, None)
    board.log_metrics({"loss": 9.0}, 3)
    board.finalize("success")
    assert scalars(tmp_path / FOLDER)["train/loss"] == {0: 0.0, 3: 9.0}
