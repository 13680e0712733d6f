"""What is on disk: metrics, checkpoints, the run folder."""

import os
import pickle
import subprocess
from argparse import Namespace

import pytest
import torch

from runs.checkpoint import AtomicCheckpointIO
from runs.folder import create_folder, new_run_id
from runs.loggers import MetricsCSV
from runs.resume import check_same_data, pop_resume_flag, resume_argv
from utils import errors
from utils.errors import UserError
from utils.files import last_value, read_json, read_metrics
from utils.provenance import provenance


def test_metrics_have_a_row_per_point_and_a_column_per_metric(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"loss": 1.5, "epoch": 0}, 9)
    log.log_metrics({"knn_20": 50.0, "epoch": 0}, 10)
    log.log_metrics({"loss": 1.25, "epoch": 1}, 19)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,loss,epoch,knn_20", "9,1.5,0,", "10,,0,50.0", "19,1.25,1,",
    ]  # fmt: skip
    rows = read_metrics(tmp_path / "metrics.csv")
    assert last_value(rows, "loss") == 1.25
    assert last_value(rows, "knn_20") == 50.0
    assert last_value(rows, "nothing") is None


def test_a_resumed_run_makes_its_rows_again(tmp_path):
    log = MetricsCSV(tmp_path)
    for step in range(5):
        log.log_metrics({"loss": float(step)}, step)
    again = MetricsCSV(tmp_path)
    again.truncate_from_step(3)
    again.log_metrics({"loss": 30.0}, 3)
    assert [row["loss"] for row in read_metrics(again.path)] == ["0.0", "1.0", "2.0", "30.0"]


def test_a_row_cut_off_by_a_crash_is_left_out(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"loss": 1.0, "lr": 0.1}, 0)
    with log.path.open("a") as f:
        f.write("1,2.")
    assert len(read_metrics(log.path)) == 1


def test_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full_disk)
    with pytest.raises(UserError, match="No space left on device.*untouched"):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/lookalike-was-here",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", pickle.dumps(Evil())])
def test_unreadable_and_malicious_checkpoints_are_refused(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="x.ckpt is not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    torch.save({"evil": Evil()}, tmp_path / "y.ckpt")
    with pytest.raises(UserError, match="y.ckpt is not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "y.ckpt")
    assert not os.path.exists("/tmp/lookalike-was-here")


def folder_args(tmp_path, **more):
    return Namespace(**{"output": str(tmp_path), "run_id": None, "wandb": False, "dataset": "digits",
                        "backbone": "resnet18"} | more)  # fmt: skip


def test_run_folder_is_new_and_never_overwritten(tmp_path):
    args = folder_args(tmp_path)
    assert new_run_id(args, "nnclr").startswith("nnclr-digits-resnet18-20")
    folder = create_folder(args, "mine")
    create_folder(args, "mine")  # an empty folder is nobody's
    (folder / "args.json").write_text("{}")
    with pytest.raises(UserError, match="mine already holds a run; go on with it by --resume .*mine"):
        create_folder(args, "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the run folder"):
        create_folder(folder_args(tmp_path / "file"), "x")


def test_resume_words():
    assert pop_resume_flag(["a", "--resume", "RUN", "--epochs", "3"])[1] == ["a", "--epochs", "3"]
    assert str(pop_resume_flag(["--resume=RUN"])[0]) == "RUN"
    assert pop_resume_flag(["a", "b"]) == (None, ["a", "b"])


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="no last.ckpt in it"):
        resume_argv(tmp_path, [])
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match="args.json does not exist"):
        resume_argv(tmp_path, [])
    (tmp_path / "args.json").write_text('{"argv": ["digits", "resnet18"]')
    with pytest.raises(UserError, match="damaged"):
        resume_argv(tmp_path, [])
    (tmp_path / "args.json").write_text('{"argv": ["digits", "resnet18"]}')
    assert resume_argv(tmp_path, ["--gpus", "0"])[1] == ["digits", "resnet18", "--gpus", "0"]
    assert resume_argv(tmp_path, ["digits", "resnet34"])[1] == ["digits", "resnet34"]
    assert read_json(tmp_path / "args.json")["argv"] == ["digits", "resnet18"]


def test_resume_needs_the_same_data_and_global_batch():
    before = {"resolved": {"global_batch": 64, "fingerprint": "abc"}}
    check_same_data(before, Namespace(fingerprint="abc", global_batch=64))
    check_same_data(
        {"fingerprint": "abc", "resolved": {"global_batch": 64}}, Namespace(fingerprint="abc", global_batch=64)
    )
    with pytest.raises(UserError, match="not those that the run began with"):
        check_same_data(before, Namespace(fingerprint="xyz", global_batch=64))
    with pytest.raises(UserError, match="global batch of 32 differs from the run's 64"):
        check_same_data(before, Namespace(fingerprint="abc", global_batch=32))


def test_provenance_names_versions_and_commit():
    told = provenance()
    assert told["packages"]["torch"] == torch.__version__.split("+")[0]
    inside = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert told["commit"].startswith(inside.stdout.strip()) or told["commit"] == "unknown"


def test_a_users_mistake_is_one_line_and_status_2(capsys):
    def wrong(argv):
        raise UserError("Original Traceback:\n  File x\nutils.errors.UserError: a.png is broken; repair it")

    with pytest.raises(SystemExit) as e:
        errors.run(wrong)
    assert e.value.code == 2
    assert capsys.readouterr().err == "error: a.png is broken; repair it\n"
