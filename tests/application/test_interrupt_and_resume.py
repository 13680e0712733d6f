"""A run that is interrupted or killed, and resumed, equals one that never stopped."""

import signal

import pytest
import torch
from safetensors.torch import load_file

import main_contrastive
from backbones.load import read_metadata, save_tensors
from methods import METHODS
from runs.callbacks import ProgressBar
from tests.helpers.commands import evaluate_run, words
from tests.helpers.runs import assert_same_run, checkpoint, equal, interrupt_at, refused
from tests.torture.launch import Command
from utils.errors import Interrupted
from utils.files import read_json, read_metrics

pytestmark = pytest.mark.usefixtures("no_embedding")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        # The state of every method is resumed in tests/methods/test_resume.py.
        *(pytest.param(m, "", marks=[] if m == "nnclr" else pytest.mark.slow) for m in METHODS),
        ("nnclr", "--pipeline torchvision --small_views 2 --small_size 8"),
        ("simclr", "--pipeline stream --num_workers 2 --small_views 2 --small_size 8"),
        ("byol", "--small_views 2 --small_size 8 --clip_grad 0.5"),
    ],
)
def test_run_interrupted_within_an_epoch_and_resumed_equals_the_whole_run(tmp_path, monkeypatch, few, method, more):
    argv = ["custom", *words(method, tmp_path, *few, *more.split())[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])
    if method == "nnclr":  # the others differ in their losses, not in where their randomness comes from
        main_contrastive.main([*argv, "--run_id", "twice"])
        assert_same_run(tmp_path / "whole", tmp_path / "twice")
    with monkeypatch.context() as m:
        interrupt_at(m, 8)  # of 5 steps per epoch
        with pytest.raises(Interrupted, match=r"at step 8\. Resume with: .* --resume"):
            main_contrastive.main([*argv, "--run_id", "stopped"])
    assert checkpoint(tmp_path / "stopped")["global_step"] == 8
    assert not equal(checkpoint(tmp_path / "stopped")["state_dict"], checkpoint(tmp_path / "whole")["state_dict"])
    main_contrastive.main(["--resume", str(tmp_path / "stopped")])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("step", "more"),
    [(5, []), (6, []), (14, []), (3, ["--accumulate", "2", "--queue_size", "600"]), (4, ["--steps", "7"])],
    ids=["last step of an epoch", "first step of an epoch", "before the last step", "accumulating", "counted in steps"],
)
def test_run_interrupted_at_the_edge_of_an_epoch_equals_the_whole_run(tmp_path, monkeypatch, few, step, more):
    argv = ["custom", *words("nnclr", tmp_path, *few, *more)[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])
    with monkeypatch.context() as m:
        interrupt_at(m, step)
        with pytest.raises(Interrupted):
            main_contrastive.main([*argv, "--run_id", "stopped"])
    main_contrastive.main(["--resume", str(tmp_path / "stopped"), "--num_workers", "0"])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(("step", "every", "saved"), [(6, "1epoch", 5), (9, "4steps", 8), (13, "1epoch", 10)])
def test_run_killed_and_resumed_from_its_last_checkpoint_equals_the_whole_run(
    tmp_path, monkeypatch, few, step, every, saved
):
    """No warning, as by a power cut: the run goes on from the end of the epoch before, or from within the epoch."""
    argv = ["custom", *words("nnclr", tmp_path, *few)[1:]]
    main_contrastive.main([*argv, "--run_id", "whole"])

    def die(self, trainer, *args):
        if trainer.global_step == step:
            raise RuntimeError("power cut")

    with monkeypatch.context() as m:
        m.setattr(ProgressBar, "on_train_batch_end", die)
        with pytest.raises(RuntimeError, match="power cut"):
            main_contrastive.main([*argv, "--run_id", "killed", "--checkpoint_every", every, "--keep_every", "1"])
    assert checkpoint(tmp_path / "killed")["global_step"] == saved
    main_contrastive.main(["--resume", str(tmp_path / "killed"), "--checkpoint_every", "15m", "--keep_every", "3"])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    kept = {f"epoch-{epoch:05}.ckpt" for epoch in (*range(1, step // 5 + 1), 3)}
    assert {path.name for path in (tmp_path / "killed").glob("epoch-*")} == kept


def test_kept_epoch_can_be_evaluated(tmp_path, few):
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few, "--run_id", "r", "--keep_every", "2")[1:]])
    evaluate_run(tmp_path, "r/epoch-00002.ckpt", few)
    tensors = torch.load(tmp_path / "r" / "epoch-00002.ckpt", weights_only=True)
    assert tensors["global_step"] == 10
    assert not equal(tensors["state_dict"], checkpoint(tmp_path / "r")["state_dict"])
    assert read_json(tmp_path / "evaluated" / "summary.json")


def test_finished_run_resumes_without_training(tmp_path, few):
    main_contrastive.main(["custom", *words("simclr", tmp_path, *few)[1:], "--run_id", "r"])
    before = checkpoint(tmp_path / "r")["state_dict"]
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    main_contrastive.main(["--resume", str(tmp_path / "r")])
    assert equal(before, checkpoint(tmp_path / "r")["state_dict"])
    assert rows == read_metrics(tmp_path / "r" / "metrics.csv")


def test_resume_refuses_changes(tmp_path):
    main_contrastive.main(words("simclr", tmp_path, "--steps", "1", "--run_id", "r"))
    run = str(tmp_path / "r")
    assert "--epochs 9 differs from the run's 3" in refused(["--resume", run, "--epochs", "9"])
    assert "global batch of 128 differs" in refused(["--resume", run, "--batch_size", "128"])
    assert "already holds a run" in refused(words("simclr", tmp_path, "--run_id", "r"))


def test_ctrl_c_saves_and_prints_the_resume_command(tmp_path):
    argv = words("simclr", tmp_path, "--run_id", "r", "--epochs", "500", "--knn_every", "0")
    command = Command(argv, tmp_path)
    command.wait_for_step(3)
    command.ranks[0].send(signal.SIGINT)
    ended = command.wait()
    assert ended.statuses == [130], ended.text
    assert "Resume with: python3 main_contrastive.py --resume" in ended.text
    assert "Traceback" not in ended.text
    assert checkpoint(tmp_path / "r")["global_step"] > 0


def test_run_that_ended_before_its_first_checkpoint_is_started_again(tmp_path, monkeypatch, few):
    argv = ["custom", *words("simclr", tmp_path, *few)[1:], "--run_id", "r"]

    def die(self, trainer, *args):
        raise RuntimeError("power cut")

    with monkeypatch.context() as m:
        m.setattr(ProgressBar, "on_train_batch_end", die)
        with pytest.raises(RuntimeError, match="power cut"):
            main_contrastive.main([*argv, "--seed", "3"])
    assert "no checkpoint yet" in refused(["--resume", str(tmp_path / "r")])
    main_contrastive.main(argv)
    assert checkpoint(tmp_path / "r")["global_step"] == 15


def test_resuming_a_run_that_is_done_writes_the_backbone_that_a_kill_prevented(tmp_path, few):
    argv = ["custom", *words("simclr", tmp_path, *few, "--run_id", "r")[1:]]
    main_contrastive.main(argv)
    path, part = tmp_path / "r" / "backbone.safetensors", tmp_path / "r" / ".backbone.safetensors.part"
    written, metadata = path.read_bytes(), read_metadata(path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # load_file maps the file
    earlier = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for damage in (
        lambda: path.replace(part),
        lambda: path.write_bytes(written[:-1] + bytes([written[-1] ^ 1])),
        lambda: save_tensors(path, earlier, metadata | {"epochs": "1", "steps": "5"}),
    ):
        damage()
        main_contrastive.main(["--resume", str(tmp_path / "r")])
        assert equal(load_file(path), tensors)
        assert read_metadata(path) == metadata
        assert not part.exists()
