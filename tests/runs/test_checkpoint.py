"""Checkpoints on disk."""

import errno
import os
import pickle
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runs.checkpoint import AtomicCheckpointIO, CheckpointCallback, seal
from utils.errors import UserError


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def save(folder, step):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": step, "weight": torch.full((50,), float(step))}, folder / "last.ckpt")
    return io.failure


def load(folder):
    return AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt")["step"]


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def files(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "os.replace", "runs.checkpoint.seal"])
def test_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, broken):
    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as m:
        m.setattr(broken, full_disk)
        assert "No space left on device" in save(tmp_path, 3)
    assert load(tmp_path) == 2
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)["step"] in (1, 2)
    assert files(tmp_path) == ["last.ckpt", "previous.ckpt"]
    assert save(tmp_path, 4) is None
    assert load(tmp_path) == 4


def test_error_of_the_disk_is_found_behind_the_error_of_torch(tmp_path, monkeypatch):
    def write(*args):
        try:
            full_disk()
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr("torch.save", write)
    assert "No space left on device" in save(tmp_path, 1)
    assert not files(tmp_path)


def test_last_two_are_kept_also_without_hard_links(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save(tmp_path, step)
    monkeypatch.setattr("os.link", full_disk)
    save(tmp_path, 4)
    assert files(tmp_path) == ["last.ckpt", "previous.ckpt"]
    steps = [torch.load(tmp_path / name, weights_only=True)["step"] for name in ("previous.ckpt", "last.ckpt")]
    assert steps == [3, 4], "torch reads them without this project"


def test_flipped_bit_anywhere_is_found_and_the_one_before_is_used(tmp_path, capsys):
    for step in (1, 2):
        save(tmp_path, step)
    path, chance = tmp_path / "last.ckpt", random.Random(0)
    size = path.stat().st_size
    for position in [0, size - 1, size - 64, size - 65, *(chance.randrange(size) for _ in range(300))]:
        bit = chance.randrange(8)
        flip(path, position, bit)
        assert load(tmp_path) == 1, position
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        assert "last.ckpt is damaged" in printed
        assert "going on from previous.ckpt" in printed
        flip(path, position, bit)
    assert load(tmp_path) == 2


def test_cut_off_or_missing_newest_one_is_replaced_by_the_one_before(tmp_path, capsys):
    for step in (1, 2):
        save(tmp_path, step)
    path = tmp_path / "last.ckpt"
    content = path.read_bytes()
    for length in (0, 1, 64, 65, len(content) - 64, len(content) - 1):
        path.write_bytes(content[:length])
        assert load(tmp_path) == 1
    capsys.readouterr()
    path.unlink()
    assert load(tmp_path) == 1
    assert "last.ckpt is missing: going on from previous.ckpt" in capsys.readouterr().out


def test_two_damaged_ones_are_one_line(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    for name in ("last.ckpt", "previous.ckpt"):
        flip(tmp_path / name, 500)
    with pytest.raises(UserError, match=r"last.ckpt is damaged.*previous.ckpt is damaged") as e:
        load(tmp_path)
    assert "\n" not in str(e.value)


def test_damaged_one_does_not_take_the_place_of_a_good_one(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    flip(tmp_path / "last.ckpt", 500)
    save(tmp_path, 3)
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)["step"] == 1
    assert load(tmp_path) == 3


def test_file_and_folder_are_on_the_disk_before_a_save_returns(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr("os.fsync", lambda d: (synced.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d)))
    save(tmp_path, 1)
    assert synced[-1] == str(tmp_path)
    assert synced[0].endswith("last.ckpt.part")


class Evil:
    """Code that a pickle would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_unreadable_and_malicious_checkpoints_are_refused(tmp_path):
    trace = tmp_path / "code-was-run"
    for content in (b"", b"PK\x03\x04 not a zip", pickle.dumps(Evil(trace))):
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(UserError, match="x.ckpt is damaged or not a checkpoint"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    torch.save({"evil": Evil(trace)}, tmp_path / "y.ckpt")
    seal(tmp_path / "y.ckpt")
    with pytest.raises(UserError, match="y.ckpt is not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "y.ckpt")
    assert not trace.exists()
    with pytest.raises(UserError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "z.ckpt")


def saving(folder):
    """(a callback, a trainer whose checkpoints are one number, a module)."""
    io, module = AtomicCheckpointIO(), SimpleNamespace(device="cpu", get_submodule=lambda name: nn.Linear(1, 1))
    trainer = SimpleNamespace(
        global_step=1, current_epoch=0, is_last_batch=True, is_global_zero=True,
        strategy=SimpleNamespace(checkpoint_io=io),
        save_checkpoint=lambda path: io.save_checkpoint({"step": trainer.global_step}, path),
    )  # fmt: skip
    return CheckpointCallback(folder, {}), trainer, module


@pytest.mark.parametrize("broken", ["torch.save", "backbones.load.save_file"])
def test_full_disk_at_the_end_of_an_epoch_is_one_line_and_the_next_save_is_tried(tmp_path, monkeypatch, capsys, broken):
    callback, trainer, module = saving(tmp_path)
    callback.on_train_epoch_end(trainer, module)
    before = files(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(broken, full_disk)
        callback.on_train_epoch_end(trainer, module)
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        assert "No space left on device" in printed
        with pytest.raises(UserError, match="No space left on device"):  # an interrupted run must not claim to be saved
            callback.save(trainer, module)
        with pytest.raises(UserError, match="the end of the run is not saved: .*No space left on device"):
            callback.on_train_end(trainer, module)
    assert set(files(tmp_path)) <= {*before, "previous.ckpt"}
    trainer.global_step = 2
    callback.on_train_epoch_end(trainer, module)
    callback.on_train_end(trainer, module)
    assert load(tmp_path) == 2


def test_error_before_a_save_prevents_it(tmp_path):
    callback, trainer, module = saving(tmp_path)

    def refuse(*args):
        raise UserError("not finite")

    callback.before_save = refuse
    for save_now in (callback.save, callback.on_train_epoch_end):
        with pytest.raises(UserError, match="not finite"):
            save_now(trainer, module)
    assert not files(tmp_path)
