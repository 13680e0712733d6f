"""Distillation as a run: the teacher's file is needed once, and wrong teachers are refused before training."""

import shutil

import pytest
import torch

import main_contrastive
from backbones.load import open_weights
from tests.helpers.commands import TEACHER, TINY, evaluate_run, teacher_file, words
from tests.helpers.runs import assert_same_run, checkpoint, interrupt_at, refused
from utils.errors import Interrupted
from utils.files import read_json

pytestmark = pytest.mark.usefixtures("no_embedding")


def test_wrong_teachers_are_refused_before_there_is_a_run(tmp_path):
    argv = [*TINY, "--method", "distill", "--output", str(tmp_path / "runs"), "--teacher"]
    assert "gone.ckpt does not exist" in refused([*argv, TEACHER, "--teacher_weights", "gone.ckpt"])
    assert f"holds the weights of {TEACHER}" in refused([*argv, "resnet18", "--teacher_weights", teacher_file()])
    assert "required: --teacher_weights" in refused([*argv, TEACHER])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_resumed_run_needs_no_file_of_the_teacher_and_equals_the_whole_run(tmp_path, monkeypatch, few):
    """Student and teacher have the same backbone here, so that one could be mistaken for the other in a checkpoint."""
    file = shutil.copy(teacher_file(), tmp_path / "teacher.safetensors")
    more = ["--teacher", TEACHER, "--teacher_weights", str(file), "--small_views", "2", "--small_size", "8"]
    argv = ["custom", *words("distill", tmp_path, *few, *more)[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])
    with monkeypatch.context() as m:
        interrupt_at(m, 8)  # of 5 steps per epoch
        with pytest.raises(Interrupted):
            main_contrastive.main([*argv, "--run_id", "stopped"])
    file.unlink()
    main_contrastive.main(["--resume", str(tmp_path / "stopped")])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert read_json(tmp_path / "stopped" / "args.json")["plan"]["teacher"]["stem"] == "imagenet"
    state, teacher = checkpoint(tmp_path / "whole")["state_dict"], open_weights(teacher_file()).tree
    for name, value in teacher.items():
        assert torch.equal(state[f"teacher.network.{name}"], value), f"{name}: training has changed the teacher"
    saved = open_weights(str(tmp_path / "whole")).tree
    assert all(torch.equal(state[f"backbone.{name}"], value) for name, value in saved.items())
    evaluate_run(tmp_path, "whole", few)
