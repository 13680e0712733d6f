"""Checkpoints on disk."""

import os
import pickle

import pytest
import torch

from runs.checkpoint import AtomicCheckpointIO
from utils.errors import UserError


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
    """Code that a pickle would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_unreadable_and_malicious_checkpoints_are_refused(tmp_path):
    trace = tmp_path / "code-was-run"
    for content in (b"", b"PK\x03\x04 not a zip", pickle.dumps(Evil(trace))):
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(UserError, match="x.ckpt is not a readable checkpoint"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    torch.save({"evil": Evil(trace)}, tmp_path / "y.ckpt")
    with pytest.raises(UserError, match="y.ckpt is not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "y.ckpt")
    assert not trace.exists()
    with pytest.raises(UserError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "z.ckpt")
