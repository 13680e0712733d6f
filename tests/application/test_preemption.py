"""Runs that a cluster stops: signals, exit codes, SLURM, and `--resume auto`."""

import shutil
import signal
import time

import pytest

import main_contrastive
from runs.callbacks import Throughput
from tests.helpers.commands import start, words
from tests.helpers.runs import assert_same_run, checkpoint, equal, interrupt_at, refused, slurm_job
from utils.errors import STOP_SIGNALS, Interrupted
from utils.files import read_metrics

pytestmark = pytest.mark.usefixtures("no_embedding")


@pytest.fixture
def argv(tmp_path, few):
    """A command of three epochs of five steps."""
    return ["custom", *words("simclr", tmp_path, *few)[1:]]


def stopped(argv, monkeypatch, step, number):
    """The exit of a run to which a signal comes in this step."""
    with monkeypatch.context() as m:
        interrupt_at(m, step, number)
        with pytest.raises(Interrupted) as e:
            main_contrastive.main(argv)
    return e.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_slurm_job_leaves_no_checkpoint_of_lightning(tmp_path, monkeypatch, argv, number):
    slurm_job(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert stopped([*argv, "--run_id", "r"], monkeypatch, 7, number).code == 128 + number
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert checkpoint(tmp_path / "r")["global_step"] == 7


def test_slurm_job_never_starts_from_a_checkpoint_of_lightning(tmp_path, monkeypatch, argv):
    main_contrastive.main([*argv, "--run_id", "whole"])
    shutil.copy(tmp_path / "whole" / "last.ckpt", tmp_path / "hpc_ckpt_1.ckpt")  # a finished run: nothing would train
    slurm_job(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def plant(folder):
        shutil.copy(tmp_path / "hpc_ckpt_1.ckpt", folder / "hpc_ckpt_1.ckpt")

    setup = main_contrastive.build_trainer
    monkeypatch.setattr(main_contrastive, "build_trainer", lambda *a, **k: (plant(tmp_path / "r"), setup(*a, **k))[1])
    main_contrastive.main([*argv, "--run_id", "r"])
    assert_same_run(tmp_path / "whole", tmp_path / "r")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_each_signal_saves_after_the_step_and_has_its_exit_code(tmp_path, monkeypatch, argv, number):
    left = stopped([*argv, "--run_id", "r"], monkeypatch, 3, number)
    assert left.code == 128 + number
    assert "at step 3. Resume with" in str(left)
    assert checkpoint(tmp_path / "r")["global_step"] == 3


def test_signal_before_the_first_step_leaves_with_one_line_and_the_run_can_start_again(tmp_path, monkeypatch, argv):
    def send(self, trainer, *args):
        signal.raise_signal(signal.SIGTERM)

    for _ in range(2):
        with monkeypatch.context() as m:
            m.setattr(Throughput, "on_train_epoch_start", send)
            with pytest.raises(Interrupted, match="before the first step") as e:
                main_contrastive.main([*argv, "--run_id", "r"])
        assert e.value.code == 143
        assert "\n" not in str(e.value)
    main_contrastive.main([*argv, "--run_id", "r", "--epochs", "1"])
    assert checkpoint(tmp_path / "r")["global_step"] == 5


def test_handlers_are_put_back_when_a_run_stops_or_fails(tmp_path, monkeypatch, argv):
    def fail(self, *args):
        raise RuntimeError("defect")

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stopped([*argv, "--run_id", "stopped"], monkeypatch, 2, signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before
    monkeypatch.setattr(Throughput, "on_train_batch_end", fail)
    with pytest.raises(RuntimeError, match="defect"):
        main_contrastive.main([*argv, "--run_id", "failed"])
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@pytest.mark.parametrize("every", ["1epoch", "2h"])
def test_run_of_one_step_per_epoch_stops_after_the_epoch_and_equals_the_whole_run(tmp_path, monkeypatch, argv, every):
    argv = [*argv, "--batch_size", "60", "--epochs", "6", "--checkpoint_every", every]
    main_contrastive.main([*argv, "--run_id", "whole"])
    stopped([*argv, "--run_id", "r"], monkeypatch, 2, signal.SIGUSR1)
    assert checkpoint(tmp_path / "r")["global_step"] == 2
    main_contrastive.main(["--resume", str(tmp_path / "r")])
    assert_same_run(tmp_path / "whole", tmp_path / "r")


@pytest.mark.slow
def test_two_processes_that_log_once_an_epoch_stop_after_the_epoch(tmp_path, monkeypatch):
    """One of the two gets the signal; both save, and leave with its code."""
    argv = words("simclr", tmp_path, "--batch_size", "128", "--log_every", "5", "--epochs", "900", "--knn_every", "0")
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
             "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip
    processes = []
    for rank in ("0", "1"):
        for name, value in {**group, "MASTER_PORT": "29617", "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        processes.append(start(["main_contrastive.py", *argv, "--run_id", "r"]))
    metrics, deadline = tmp_path / "r" / "metrics.csv", time.time() + 120
    while not (metrics.exists() and metrics.stat().st_size > 300) and time.time() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    try:
        printed = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [143, 143], printed
    assert "Traceback" not in "".join(printed)
    assert "".join(printed).count("Resume with") == 1
    assert checkpoint(tmp_path / "r")["global_step"] % 5 == 0


def test_resume_auto_starts_goes_on_and_is_done(tmp_path, monkeypatch, argv, capsys):
    main_contrastive.main([*argv, "--run_id", "whole"])
    auto = [*argv, "--run_id", "r", "--resume", "auto"]
    stopped(auto, monkeypatch, 7, signal.SIGUSR1)
    main_contrastive.main(auto)
    assert_same_run(tmp_path / "whole", tmp_path / "r")
    rows, weights = read_metrics(tmp_path / "r" / "metrics.csv"), checkpoint(tmp_path / "r")["state_dict"]
    capsys.readouterr()
    main_contrastive.main(auto)
    assert f"done: {tmp_path / 'r'}" in capsys.readouterr().out
    assert rows == read_metrics(tmp_path / "r" / "metrics.csv")
    assert equal(weights, checkpoint(tmp_path / "r")["state_dict"])


def test_resume_auto_starts_a_run_again_that_died_before_its_first_checkpoint(tmp_path, monkeypatch, argv):
    def die(self, *args):
        raise RuntimeError("power cut")

    auto = [*argv, "--run_id", "r", "--resume", "auto"]
    with monkeypatch.context() as m:
        m.setattr(Throughput, "on_train_epoch_end", die)
        with pytest.raises(RuntimeError, match="power cut"):
            main_contrastive.main(auto)
    main_contrastive.main(auto)
    main_contrastive.main([*argv, "--run_id", "whole"])
    assert_same_run(tmp_path / "whole", tmp_path / "r")


def test_resume_auto_refuses_what_it_cannot_know(tmp_path, argv):
    assert "--resume auto needs --run_id" in refused([*argv, "--resume", "auto"])
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "results.json").touch()
    assert "already holds a run" in refused([*argv, "--run_id", "r", "--resume", "auto"])


def test_other_logging_and_evaluation_intervals_give_equal_weights(tmp_path, monkeypatch, argv):
    argv = [*argv, "--method", "nnclr", "--queue_size", "40", "--hidden_mlp", "16", "--pred_hidden_mlp", "16"]
    main_contrastive.main([*argv, "--run_id", "whole"])
    stopped([*argv, "--run_id", "r"], monkeypatch, 7, signal.SIGTERM)
    main_contrastive.main(["--resume", str(tmp_path / "r"), "--log_every", "3", "--knn_every", "0",
                           "--checkpoint_every", "0.001s"])  # fmt: skip
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "r")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(whole[part], resumed[part]), part
    steps = [int(row["step"]) for row in read_metrics(tmp_path / "r" / "metrics.csv") if row["loss"]]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 8, 11, 14]  # every step, then those after which 3 divides the count
