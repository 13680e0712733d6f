"""An evaluation that fails, or is cut off, at the end of an epoch or of the run costs neither."""

import shutil

import pytest

import main_contrastive
from evaluation.callbacks import OnlineEvaluation
from evaluation.knn import knn_accuracy
from tests.helpers.commands import words
from tests.helpers.runs import checkpoint, equal
from utils.files import read_json, read_metrics

pytestmark = pytest.mark.usefixtures("no_embedding")


@pytest.fixture
def argv(tmp_path, few):
    """A command of three epochs of five steps, each of which kNN evaluates."""
    return ["custom", *words("simclr", tmp_path, *few, "--knn_every", "1")[1:]]


def knn(folder):
    return {int(row["step"]): float(row["knn_5"]) for row in read_metrics(folder / "metrics.csv") if row["knn_5"]}


def test_knn_and_pictures_that_fail_leave_the_run_as_it_is(tmp_path, monkeypatch, argv, capsys):
    main_contrastive.main([*argv, "--run_id", "whole"])
    calls = []

    def fail_once(*args, **options):
        calls.append(checkpoint(tmp_path / "r")["global_step"])
        if len(calls) == 2:
            raise MemoryError("cannot allocate 7 GiB")
        return knn_accuracy(*args, **options)

    def fail(*args):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("evaluation.callbacks.knn_accuracy", fail_once)
    monkeypatch.setattr("evaluation.pictures.curves", fail)
    capsys.readouterr()
    main_contrastive.main([*argv, "--run_id", "r"])
    printed = capsys.readouterr().out
    assert "warning: kNN of epoch 2 failed: MemoryError: cannot allocate 7 GiB; the run goes on" in printed
    assert "no fonts; the run goes on" in printed
    assert printed.splitlines()[-1] == f"done: {tmp_path / 'r'}"
    assert calls == [5, 10, 15], "each epoch is saved before it is evaluated"
    whole = knn(tmp_path / "whole")
    assert list(whole) == [4, 9, 14]
    assert knn(tmp_path / "r") == {step: whole[step] for step in (4, 14)}
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(checkpoint(tmp_path / "whole")[part], checkpoint(tmp_path / "r")[part]), part
    assert read_json(tmp_path / "r" / "summary.json")["knn_5"] == whole[14]


def test_run_that_is_killed_in_an_evaluation_resumes_with_the_next_epoch_to_the_same_end(tmp_path, monkeypatch, argv):
    """The copy of the folder is what kill -9 leaves."""
    evaluate, copy = OnlineEvaluation.on_train_epoch_end, tmp_path / "killed" / "r"

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 1:
            shutil.copytree(tmp_path / "r", copy, ignore=shutil.ignore_patterns(".lock"))
        evaluate(self, trainer, module)

    with monkeypatch.context() as m:
        m.setattr(OnlineEvaluation, "on_train_epoch_end", on_train_epoch_end)
        main_contrastive.main([*argv, "--run_id", "r"])
    assert checkpoint(copy)["global_step"] == 10
    assert list(knn(copy)) == [4]
    main_contrastive.main(["--resume", str(copy)])
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(checkpoint(tmp_path / "r")[part], checkpoint(copy)[part]), part
    assert knn(copy) == knn(tmp_path / "r"), "what was cut off is evaluated at the resume"
    epochs = {row["epoch"] for row in read_metrics(copy / "metrics.csv") if row["knn_5"] and row["step"] == "9"}
    assert epochs == {"1"}
