"""NaN, flipped bits, foreign checkpoints and full disks: a run stops or goes on, and what was safe stays."""

import errno
import json
import shutil

import pytest
import torch
from torch import nn

import main_contrastive
from methods.base import Method
from runs.finite import NonFiniteLossCheck
from tests.helpers.commands import words
from tests.helpers.runs import assert_same_run, checkpoint, equal, interrupt_at, refused
from tests.torture.launch import run_to_end
from utils.errors import Interrupted

pytestmark = pytest.mark.usefixtures("no_embedding")


def train(tmp_path, few, run, *more, method="simclr"):
    argv = ["custom", *words(method, tmp_path, *few, *more)[1:], "--run_id", run]
    main_contrastive.main(argv)
    return tmp_path / run


def poison(monkeypatch, step):
    """Make the loss NaN in one step."""
    whole = Method.training_step

    def training_step(self, batch, batch_idx):
        loss = whole(self, batch, batch_idx)
        return loss * float("nan") if self.trainer.global_step + 1 == step else loss

    monkeypatch.setattr(Method, "training_step", training_step)


def test_nan_between_logged_steps_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, few):
    poison(monkeypatch, 7)  # of 5 per epoch
    argv = ["custom", *words("simclr", tmp_path, *few, "--log_every", "1000", "--run_id", "r")[1:]]
    message = refused(argv)
    assert "the loss is not finite at step 7; try a lower --lr" in message
    saved = checkpoint(tmp_path / "r")
    assert saved["global_step"] == 5
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    report = json.loads((tmp_path / "r" / "post_mortem.json").read_text())
    assert report["step"] == report["step_of_indices"] == 7
    assert len(report["indices"]) == 12
    assert set(report["indices"]) <= set(range(60))
    assert report["last_finite"]["loss"] > 0
    assert report["last_finite"]["gradient norm"] > 0


def test_interrupt_after_nan_does_not_save_it(tmp_path, monkeypatch, few):
    poison(monkeypatch, 7)
    interrupt_at(monkeypatch, 8)
    argv = ["custom", *words("simclr", tmp_path, *few, "--log_every", "1000", "--run_id", "r")[1:]]
    assert "not finite at step 7" in refused(argv)
    assert checkpoint(tmp_path / "r")["global_step"] == 5


@pytest.mark.parametrize("log_every", ["1", "1000"])
def test_absurd_rate_never_trains_to_the_end(tmp_path, few, log_every):
    argv = ["custom", *words("simclr", tmp_path, *few, "--lr", "1e30", "--log_every", log_every, "--run_id", "r")[1:]]
    message = refused(argv)
    assert "is not finite at step" in message
    assert "try a lower --lr" in message
    assert not (tmp_path / "r" / "last.ckpt").exists()
    assert "no checkpoint" in refused(["--resume", str(tmp_path / "r")])


@pytest.mark.parametrize("more", [[], ["--clip_grad", "0.5", "--accumulate", "2"]])
def test_watching_does_not_change_a_bit(tmp_path, monkeypatch, few, more):
    watched = train(tmp_path, few, "watched", *more)

    def clip(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        if gradient_clip_val:
            clipped = [p for name, p in self.named_parameters() if not name.startswith("probe.")]
            nn.utils.clip_grad_norm_(clipped, gradient_clip_val)

    monkeypatch.setattr(Method, "configure_gradient_clipping", clip)
    for hook in ("on_train_batch_end", "on_train_epoch_end", "check"):
        monkeypatch.setattr(NonFiniteLossCheck, hook, lambda *args: None)
    assert_same_run(watched, train(tmp_path, few, "unwatched", *more))


def test_damaged_newest_checkpoint_resumes_from_the_one_before_to_the_same_end(tmp_path, monkeypatch, few, capsys):
    whole = train(tmp_path, few, "whole")
    with monkeypatch.context() as m:
        interrupt_at(m, 8)
        with pytest.raises(Interrupted):
            train(tmp_path, few, "r")
    folder = tmp_path / "r"
    content = bytearray((folder / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "last.ckpt").write_bytes(content)
    capsys.readouterr()
    main_contrastive.main(["--resume", str(folder)])
    assert "last.ckpt is damaged" in capsys.readouterr().out
    assert_same_run(whole, folder)
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).write_bytes(content)
    ended = run_to_end(["--resume", str(folder)], tmp_path)
    assert ended.statuses == [2]
    assert ended.text.count("error: ") == 1
    assert "previous.ckpt is damaged" in ended.text
    assert "Traceback" not in ended.text


def test_checkpoint_of_another_run_is_refused(tmp_path, few):
    one, two = (train(tmp_path, few, run, "--steps", "1") for run in ("one", "two"))
    shutil.copy(one / "last.ckpt", two / "last.ckpt")
    assert "belongs to another run" in refused(["--resume", str(two)])
    main_contrastive.main(["--resume", str(one)])


def test_full_disk_in_one_epoch_costs_nothing_and_in_the_last_one_is_an_error(tmp_path, monkeypatch, few, capsys):
    whole = train(tmp_path, few, "whole")
    save, full_at = torch.save, {5}

    def torch_save(content, f):
        if content["global_step"] in full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, f)

    monkeypatch.setattr("torch.save", torch_save)
    capsys.readouterr()
    assert_same_run(whole, train(tmp_path, few, "r"))
    assert capsys.readouterr().out.count("No space left on device") == 1
    full_at.update({5, 15})
    with pytest.raises(ValueError, match="the end of the run is not saved: .*No space left on device"):
        train(tmp_path, few, "late")
    assert checkpoint(tmp_path / "late")["global_step"] == 10
    assert not list((tmp_path / "late").glob(".*part"))
    full_at.clear()
    main_contrastive.main(["--resume", str(tmp_path / "late")])
    assert equal(checkpoint(whole)["state_dict"], checkpoint(tmp_path / "late")["state_dict"])


def test_two_processes_stop_together_for_the_nan_of_one(tmp_path):
    argv = words("simclr", tmp_path, "--batch_size", "128", "--log_every", "1000", "--run_id", "r")
    ended = run_to_end(argv, tmp_path, processes=2, hooks=[("nan_at_step", {"step": 3})], rank=1)
    assert all(ended.statuses)
    assert ended.text.count("of 2: the loss is not finite at step 3") == 1, ended.text
    report = json.loads((tmp_path / "r" / "post_mortem.json").read_text())
    assert report["step_of_indices"] == 3
    assert len(set(report["indices"])) == 256
    assert not (tmp_path / "r" / "last.ckpt").exists()
