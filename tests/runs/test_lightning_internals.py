"""Private parts of Lightning: a new version that changes them fails here, with the name of what changed."""

import ast
import inspect

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.logger_connector import _LoggerConnector

from runs.lightning_internals import mark_epoch_completed
from tests.helpers.commands import ROOT

ROOMS = ("backbones", "cli", "data", "evaluation", "methods", "runs", "utils")
ALLOWED = {"runs/lightning_internals.py"}
PRIVATE = ("_logger_connector", "_batches_that_stepped", "_results", "_callback_connector", "_data_connector")


def test_write_step_metrics_finds_the_logger_connector():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert isinstance(getattr(trainer, "_logger_connector", None), _LoggerConnector), "Trainer._logger_connector moved"
    parameters = inspect.signature(_LoggerConnector.update_train_step_metrics).parameters
    assert list(parameters) == ["self"], "update_train_step_metrics takes other arguments"


def test_mark_epoch_completed_finds_the_counters_of_a_checkpoint():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    loops = {"fit_loop": trainer.fit_loop.state_dict()}
    fit = loops["fit_loop"]
    for name in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        assert {"current", "total"} <= fit[name].keys(), f"{name} has no counters any more"
    fit["epoch_progress"]["current"]["processed"] = 3
    fit["epoch_loop.batch_progress"]["is_last_batch"] = True
    before = fit["epoch_loop.state_dict"].setdefault("_batches_that_stepped", 0)
    mark_epoch_completed({"loops": loops})
    assert fit["epoch_progress"]["current"]["completed"] == 3
    assert fit["epoch_loop.state_dict"]["_batches_that_stepped"] == before - 1
    assert not fit["epoch_loop.batch_progress"]["is_last_batch"]


def test_mark_epoch_completed_leaves_an_epoch_that_the_last_step_cut_short_to_be_continued():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    fit = trainer.fit_loop.state_dict()
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = 7
    for name, count in (("epoch_progress", "processed"), ("epoch_loop.batch_progress", "completed")):
        for counts in (fit[name]["current"], fit[name]["total"]):
            counts[count] = 2
    mark_epoch_completed({"loops": {"fit_loop": fit}})
    assert fit["epoch_progress"]["current"]["processed"] == fit["epoch_progress"]["total"]["processed"] == 1
    assert fit["epoch_progress"]["current"]["completed"] == 0
    assert fit["epoch_loop.batch_progress"]["current"]["completed"] == 1, "a restart adds one"
    assert fit["epoch_loop.state_dict"]["_batches_that_stepped"] == 6


def test_a_restart_adds_one_to_the_logged_steps():
    source = inspect.getsource(_TrainingEpochLoop.reset)
    assert "self._batches_that_stepped += 1" in source, "a restart no longer adds one: mark_epoch_completed must follow"


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_file_touches_private_parts_of_lightning(room):
    for path in sorted((ROOT / room).rglob("*.py")):
        if str(path.relative_to(ROOT)) in ALLOWED:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in PRIVATE), f"{path}:{node.lineno}: {node.attr}"
