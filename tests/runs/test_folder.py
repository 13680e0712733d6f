"""The run folder."""

import ctypes
import os
import sys
import time

import pytest

from runs.folder import (
    FolderLock,
    create_run_folder,
    discard_unsaved,
    lock_folder,
    new_run_id,
    release_folders,
    temporary_on_error,
    training_seconds,
    write_bad_images,
    writes_run_folder,
)
from runs.report import RunReport
from tests.helpers.commands import plan_of
from tests.helpers.processes import CONTEXT, start_forkserver
from utils.errors import UserError
from utils.files import create_json


def hold_folder(folder, then, pipe):
    """What a process does that holds a folder."""
    lock_folder(folder)
    then()
    pipe.send("held")
    time.sleep(120)


def nothing():
    pass


def fork_a_worker():
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)


def fork_a_worker_that_ends():
    if os.fork() == 0:
        ctypes.pythonapi.Py_Exit(0)  # with Python's own finalization
    os.wait()


def compete_for_a_folder(parent, barrier, pipe):
    barrier.wait()
    try:
        create_json(create_run_folder(parent, "r") / "args.json", {})
        pipe.send("won")
    except UserError as e:
        pipe.send(str(e))
    barrier.wait()  # the winner holds it until all have tried


@pytest.fixture(autouse=True)
def released():
    yield
    release_folders()


@pytest.fixture
def hold():
    """Another process that holds a folder."""
    processes = []

    def begin(folder, then=nothing):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        start_forkserver()
        processes.append(CONTEXT.Process(target=hold_folder, args=(folder, then, sender)))
        processes[-1].start()
        assert receiver.recv() == "held"
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.join()


def test_new_run_id_is_requested_or_describes_the_run():
    assert new_run_id("mine", "nnclr", "digits", "resnet18") == "mine"
    assert new_run_id(None, "nnclr", "digits", "timm/resnet18").startswith("nnclr-digits-timm_resnet18-20")
    assert len(new_run_id(None, "nnclr", "digits", "resnet18", wandb=True)) == 8
    assert len(new_run_id(None, "\u00e9" * 100, "imagenet100", "timm/resnet18").encode()) < 200


def test_new_run_id_is_that_which_a_sweep_gives(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "ab12")
    assert new_run_id(None, "nnclr", "digits", "resnet18", wandb=True) == "ab12"
    assert new_run_id("ab12", "nnclr", "digits", "resnet18", wandb=True) == "ab12"
    assert new_run_id("mine", "nnclr", "digits", "resnet18") == "mine", "without the dashboard nothing is given"
    with pytest.raises(UserError, match="--run_id mine and WANDB_RUN_ID ab12 name one run differently"):
        new_run_id("mine", "nnclr", "digits", "resnet18", wandb=True)
    monkeypatch.setenv("WANDB_RUN_ID", "../ab12")
    with pytest.raises(UserError, match="WANDB_RUN_ID: got '../ab12', needs the name of one folder"):
        new_run_id(None, "nnclr", "digits", "resnet18", wandb=True)


def test_create_run_folder_refuses_one_that_holds_a_run(tmp_path):
    folder = create_run_folder(str(tmp_path), "mine")
    create_run_folder(str(tmp_path), "mine")  # an empty folder holds no run
    (folder / "last.ckpt").write_text("")
    with pytest.raises(UserError, match="mine already holds a run; resume it with --resume .*mine"):
        create_run_folder(str(tmp_path), "mine")


def test_create_run_folder_names_the_output_that_cannot_hold_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the run folder .*choose another --output"):
        create_run_folder(str(tmp_path / "file"), "x")


def fail_in(output, content):
    with temporary_on_error(output, "r") as folder:
        if content:
            (folder / "result.txt").write_text("")
        raise RuntimeError


def test_temporary_on_error_removes_only_an_empty_folder(tmp_path):
    for content in (False, True):
        with pytest.raises(RuntimeError):
            fail_in(str(tmp_path), content)
        assert (tmp_path / "r").exists() == content


def test_write_bad_images_lists_files_with_reasons(tmp_path):
    write_bad_images(tmp_path, {})
    assert not (tmp_path / "bad_images.txt").exists()
    write_bad_images(tmp_path, {"a.png": "truncated"})
    assert (tmp_path / "bad_images.txt").read_text() == "a.png\ttruncated\n"


def test_two_jobs_of_one_second_have_folders_of_their_own(tmp_path):
    names = [create_run_folder(str(tmp_path), "same", automatic=True).name for _ in range(3)]
    assert names == ["same", "same-2", "same-3"]


def test_folder_of_a_running_process_is_refused_until_it_ends_even_by_kill(tmp_path, hold):
    process = hold(tmp_path)
    for take in (lock_folder, lambda folder: create_run_folder(str(folder.parent), folder.name)):
        with pytest.raises(UserError, match=f"{tmp_path} is in use by another process"):
            take(tmp_path)
    process.kill()
    process.join()
    lock_folder(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_lock_does_not_live_on_in_a_forked_worker(tmp_path, hold):
    process = hold(tmp_path, fork_a_worker)
    process.kill()
    process.join()
    lock_folder(tmp_path)


def test_forked_worker_that_ends_leaves_the_lock_to_its_parent(tmp_path, hold):
    hold(tmp_path, fork_a_worker_that_ends)
    with pytest.raises(UserError, match="in use"):
        lock_folder(tmp_path)


def test_command_frees_its_folder_when_it_ends_with_an_error(tmp_path, hold):
    @writes_run_folder
    def command(argv):
        lock_folder(tmp_path)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        command([])
    assert not any(tmp_path.iterdir())
    hold(tmp_path)


def test_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def no_locks(self):
        self._fallback_to_soft_lock()

    monkeypatch.setattr(FolderLock, "_acquire", no_locks)
    lock_folder(tmp_path)
    assert "without locks" in capsys.readouterr().out


def test_run_that_ended_before_its_first_checkpoint_is_replaced(tmp_path):
    run = tmp_path / "r"
    (run / "wandb" / "offline-run").mkdir(parents=True)
    grids = ("embedding.json", "attention.json", "neighbours.json")
    for name in ("args.json", "metrics.csv", ".last.ckpt.part", "curves.png", ".lock", *grids):
        (run / name).write_text("")
    create_run_folder(str(tmp_path), "r")
    assert {p.name for p in run.iterdir()} == {".lock"}


@pytest.mark.parametrize("name", ["last.ckpt", "backbone.safetensors", "summary.json", "notes.txt"])
def test_folder_with_anything_worth_keeping_is_never_replaced(tmp_path, name):
    run = tmp_path / "r"
    run.mkdir()
    for each in ("args.json", name):
        (run / each).write_text("kept")
    with pytest.raises(UserError, match="already holds a run"):
        create_run_folder(str(tmp_path), "r")
    assert {p.name for p in run.iterdir()} == {"args.json", name}


def test_processes_that_start_at_once_in_one_folder_have_one_winner(tmp_path):
    start_forkserver()
    barrier, pipes = CONTEXT.Barrier(4), [CONTEXT.Pipe(duplex=False) for _ in range(4)]
    processes = [
        CONTEXT.Process(target=compete_for_a_folder, args=(str(tmp_path), barrier, sender)) for _, sender in pipes
    ]
    for process in processes:
        process.start()
    said = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join(60)
    assert sum("won" in text for text in said) == 1, said
    assert sum("in use by another process" in text for text in said) == 3, said


def test_discard_unsaved_frees_the_name_of_a_run_without_a_checkpoint(tmp_path):
    folder = create_run_folder(str(tmp_path), "r")
    for name in ("args.json", "metrics.csv", "last.ckpt"):
        (folder / name).touch()
    discard_unsaved(folder)
    assert (folder / "args.json").exists(), "it has a checkpoint"
    (folder / "last.ckpt").unlink()
    discard_unsaved(folder)
    assert not folder.exists()


@pytest.mark.parametrize("logs", ["wandb", "tensorboard"])
def test_name_is_free_where_only_logs_of_a_dashboard_were_left(tmp_path, logs):
    """The logs stay: in a folder without args.json they may be those of another program."""
    folder = create_run_folder(str(tmp_path), "r")
    (folder / logs).mkdir()
    for name in ("args.json", "metrics.csv", "views.json", "report.html"):
        (folder / name).touch()
    discard_unsaved(folder)
    assert {p.name for p in folder.iterdir()} - {".lock"} == {logs}
    create_run_folder(str(tmp_path), "r")
    assert {p.name for p in folder.iterdir()} == {".lock", logs}
    (folder / "curves.png").touch()
    with pytest.raises(UserError, match="already holds a run"):
        create_run_folder(str(tmp_path), "r")


def test_folder_with_a_space_is_quoted_in_the_command_to_resume_it(tmp_path):
    run = tmp_path / "my runs" / "r"
    run.mkdir(parents=True)
    (run / "last.ckpt").touch()
    with pytest.raises(UserError, match=f"resume it with --resume '{run}', or choose"):
        create_run_folder(str(run.parent), "r")
    plan = plan_of("simclr")[1]
    assert RunReport(run, "python3 main_contrastive.py", {}, plan).to_resume.endswith(f" --resume '{run}'")


def test_training_time_counts_the_steps_of_an_epoch_that_the_length_cut():
    """Two whole epochs at 100 images per second, and one of 5 steps at 50."""
    plan = plan_of("simclr", "--batch_size", "64", "--steps", "49")[1]
    assert plan.schedule.steps_per_epoch == 22
    speeds = {21: "100", 30: "", 43: "100", 48: "50"}  # the number of an epoch's last step, from 0
    rows = [{"step": str(step), "images_per_second": speed} for step, speed in speeds.items()]
    assert training_seconds(rows, plan) == pytest.approx((44 * 64) / 100 + (5 * 64) / 50)
