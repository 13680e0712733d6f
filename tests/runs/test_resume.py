"""The command of a resumed run."""

import dataclasses
from argparse import Namespace

import pytest

from runs.resume import check_same_data, check_same_flags, pop_resume_flag, resume_argv
from tests.helpers.commands import plan_of
from utils.errors import UserError
from utils.files import write_json


def test_pop_resume_flag_leaves_the_other_arguments():
    assert pop_resume_flag(["a", "--resume", "RUN", "--epochs", "3"])[1] == ["a", "--epochs", "3"]
    assert str(pop_resume_flag(["--resume=RUN"])[0]) == "RUN"
    assert pop_resume_flag(["a", "b"]) == (None, ["a", "b"])


def test_pop_resume_flag_auto_is_a_new_run_until_there_is_a_checkpoint(tmp_path):
    argv = ["digits", "resnet18", "--resume", "auto", "--run_id=r", "--output", str(tmp_path)]
    assert pop_resume_flag(argv) == (None, argv)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "last.ckpt").touch()
    assert pop_resume_flag(argv) == (tmp_path / "r", argv)
    with pytest.raises(UserError, match="--resume auto needs --run_id"):
        pop_resume_flag(["digits", "resnet18", "--resume=auto"])


def test_resume_argv_needs_a_run(tmp_path):
    with pytest.raises(UserError, match=r"no last\.ckpt"):
        resume_argv(tmp_path, [])
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"args\.json does not exist"):
        resume_argv(tmp_path, [])
    (tmp_path / "args.json").write_text('{"argv": ["digits", "resnet18"]')
    with pytest.raises(UserError, match=r"args\.json cannot be read"):
        resume_argv(tmp_path, [])


def test_resume_argv_appends_flags_or_takes_a_whole_command(tmp_path):
    (tmp_path / "last.ckpt").touch()
    write_json(tmp_path / "args.json", {"argv": ["digits", "resnet18"]})
    assert resume_argv(tmp_path, ["--gpus", "0"])[1] == ["digits", "resnet18", "--gpus", "0"]
    assert resume_argv(tmp_path, ["digits", "resnet34"])[1] == ["digits", "resnet34"]
    auto = ["--resume", "auto", "digits", "resnet34"]
    assert resume_argv(tmp_path, auto)[1] == auto


def test_check_same_flags_refuses_what_changes_the_result():
    check_same_flags(Namespace(epochs=3, num_workers=1), Namespace(epochs=3, num_workers=8))
    with pytest.raises(UserError, match="--epochs 9 differs from the run's 3"):
        check_same_flags(Namespace(epochs=3), Namespace(epochs=9))


def test_check_same_flags_lists_every_difference_in_one_line():
    started = Namespace(epochs=3, lr=0.1, log_every=1, knn_every=5, seed=0)
    with pytest.raises(UserError) as e:
        check_same_flags(started, Namespace(epochs=9, lr=0.2, log_every=7, knn_every=0, seed=0))
    assert str(e.value).startswith("--epochs 9 differs from the run's 3, --lr 0.2 from 0.1; ")
    assert "log_every" not in str(e.value)


def test_check_same_flags_lets_auto_name_the_place_of_the_run_otherwise():
    started = Namespace(output="trained_models", run_id="r", resume="auto")
    check_same_flags(started, Namespace(output="/home/me/trained_models", run_id="r", resume="auto"))
    with pytest.raises(UserError, match="--output"):
        check_same_flags(started, Namespace(output="/home/me/trained_models", run_id="r", resume=None))


def test_check_same_data_refuses_other_images_and_another_global_batch(tmp_path):
    _, plan = plan_of("simclr", "--batch_size", "64")
    write_json(tmp_path / "args.json", {"plan": dataclasses.asdict(plan)})
    check_same_data(tmp_path, plan)
    other = dataclasses.replace(plan.training_set, fingerprint="xyz")
    with pytest.raises(UserError, match="training set changed"):
        check_same_data(tmp_path, dataclasses.replace(plan, training_set=other))
    half = dataclasses.replace(plan.batch, batch_size=32)
    with pytest.raises(UserError, match="global batch of 32 differs from the run's 64"):
        check_same_data(tmp_path, dataclasses.replace(plan, batch=half))
    two_processes = dataclasses.replace(plan.batch, batch_size=32, processes=2)
    check_same_data(tmp_path, dataclasses.replace(plan, batch=two_processes))
