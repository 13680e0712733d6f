"""Checkpoints on disk."""

import os
import pickle
import random
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from backbones.load import save_tensors
from runs.checkpoint import AtomicCheckpointIO, CheckpointCallback, WaitForSave, read_checkpoint, seal
from tests.helpers.disk import full_disk
from utils.errors import UserError
from utils.plan import CheckpointConfig


def save(folder, step):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": step, "weight": torch.full((50,), float(step))}, folder / "last.ckpt")
    return io.writer.wait()


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


def saving(folder, every=1, unit="epochs", keep_every=0, **more):
    """(a callback, the trainer of a run of 3 epochs of 5 steps, a module)."""
    io, module, config = AtomicCheckpointIO(), nn.Module(), CheckpointConfig(every, unit, keep_every)
    module.device, module.backbone = "cpu", nn.Linear(1, 1)

    def save_checkpoint(path, storage_options):
        step = trainer.global_step
        checkpoint = {"step": step, "global_step": step, "epochs": step // 5, "state_dict": module.state_dict()}
        io.save_checkpoint(checkpoint, path, storage_options)

    trainer = SimpleNamespace(
        global_step=5, current_epoch=0, is_last_batch=True, is_global_zero=True, should_stop=False, max_epochs=3,
        max_steps=15, num_training_batches=5, accumulate_grad_batches=1, save_checkpoint=save_checkpoint,
        strategy=SimpleNamespace(checkpoint_io=io),
    )  # fmt: skip
    return CheckpointCallback(folder, {}, config, **more), trainer, module


def train(callback, trainer, module, steps=15):
    """Let the callback see `steps` steps; the steps and epochs at which a save began."""
    begun, whole = [], trainer.save_checkpoint
    trainer.save_checkpoint = lambda *args, **more: (begun.append(trainer.global_step), whole(*args, **more))
    trainer.global_step = 0
    callback.on_train_start(trainer, module)
    for step in range(steps):
        trainer.current_epoch, batch = divmod(step, 5)
        trainer.global_step, trainer.is_last_batch = step + 1, batch == 4
        callback.on_train_batch_end(trainer, module, None, None, batch)
        if trainer.is_last_batch or step + 1 == trainer.max_steps:
            callback.on_train_epoch_end(trainer, module)
    callback.on_train_end(trainer, module)
    return begun


@pytest.mark.parametrize("broken", ["torch.save", "runs.checkpoint.save_tensors"])
def test_full_disk_at_the_end_of_an_epoch_is_one_line_and_the_next_save_is_tried(tmp_path, monkeypatch, capsys, broken):
    callback, trainer, module = saving(tmp_path)
    callback.on_train_epoch_end(trainer, module)
    trainer.strategy.checkpoint_io.writer.wait()
    before = files(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(broken, full_disk)
        callback.on_train_epoch_end(trainer, module)
        trainer.strategy.checkpoint_io.writer.wait()
        for batch in range(2):
            callback.on_train_batch_end(trainer, module, None, None, batch)
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        assert "No space left on device" in printed
        with pytest.raises(UserError, match="No space left on device"):  # an interrupted run must not claim to be saved
            callback.save(trainer, module)
        with pytest.raises(UserError, match="the end of the run is not saved: .*No space left on device"):
            callback.on_train_end(trainer, module)
    assert set(files(tmp_path)) <= {*before, "previous.ckpt"}
    trainer.global_step = 10
    callback.on_train_epoch_end(trainer, module)
    callback.on_train_end(trainer, module)
    assert load(tmp_path) == 10


@pytest.mark.parametrize("broken", ["torch.save", "runs.checkpoint.save_tensors"])
def test_last_save_is_tried_once_more_before_it_is_an_error(tmp_path, monkeypatch, broken):
    callback, trainer, module = saving(tmp_path)
    callback.on_train_epoch_end(trainer, module)
    whole, tried = {"torch.save": torch.save, "runs.checkpoint.save_tensors": save_tensors}[broken], []

    def full_once(*args):
        tried.append(args)
        return full_disk() if len(tried) == 1 else whole(*args)

    trainer.strategy.checkpoint_io.writer.wait()
    monkeypatch.setattr(broken, full_once)
    trainer.global_step = 10
    callback.on_train_epoch_end(trainer, module)
    callback.on_train_end(trainer, module)
    assert len(tried) == 2
    assert [torch.load(tmp_path / f"{name}.ckpt")["step"] for name in ("previous", "last")] == [5, 10]


def test_error_before_a_save_prevents_it(tmp_path):
    callback, trainer, module = saving(tmp_path)

    def refuse(*args):
        raise UserError("not finite")

    callback.before_save = refuse
    for save_now in (callback.save, callback.on_train_epoch_end):
        with pytest.raises(UserError, match="not finite"):
            save_now(trainer, module)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("config", "steps", "begun"),
    [
        ({}, 15, [5, 10, 15]),
        ({"every": 2}, 15, [10, 15]),
        ({"every": 4, "unit": "steps"}, 15, [4, 8, 12, 15]),
        ({"every": 5, "unit": "steps"}, 15, [5, 10, 15]),
        ({"every": 100, "unit": "steps", "keep_every": 2}, 15, [10, 15]),
        ({"every": 3600, "unit": "seconds"}, 12, [12]),
        ({"every": 7, "unit": "steps"}, 7, [7]),
    ],
)
def test_saves_begin_where_the_interval_says_and_at_the_end_of_the_run(tmp_path, config, steps, begun):
    callback, trainer, module = saving(tmp_path, **config)
    trainer.max_steps = steps
    assert train(callback, trainer, module, steps) == begun
    assert load(tmp_path) == steps


def test_accumulated_batches_are_saved_after_the_step_that_they_make(tmp_path):
    callback, trainer, module = saving(tmp_path, 1, "steps")
    trainer.accumulate_grad_batches, trainer.global_step = 2, 1
    callback.on_train_batch_end(trainer, module, None, None, 2)
    assert not files(tmp_path)
    trainer.global_step = 2
    callback.on_train_batch_end(trainer, module, None, None, 3)
    callback.save(trainer, module)
    assert load(tmp_path) == 2


def test_saves_by_time_begin_when_the_clock_says_and_never_two_at_once(tmp_path, monkeypatch):
    now, goes_on = [0.0], threading.Event()
    monkeypatch.setattr("runs.checkpoint.time.monotonic", lambda: now[0])
    callback, trainer, module = saving(tmp_path, 60, "seconds")
    whole, begun = torch.save, []
    monkeypatch.setattr("torch.save", lambda *args: (begun.append(args[0]["step"]), goes_on.wait(10), whole(*args)))
    callback.on_train_start(trainer, module)
    trainer.is_last_batch = False
    for step, now[0] in enumerate((30.0, 59.0, 61.0, 130.0, 150.0), start=6):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, 0)
    goes_on.set()
    trainer.strategy.checkpoint_io.writer.wait()
    assert begun == [8], "the next save waits until the disk is free"
    trainer.global_step = 11
    callback.on_train_batch_end(trainer, module, None, None, 0)
    callback.save(trainer, module)
    assert begun == [8, 11]


def test_training_goes_on_while_the_writer_writes_the_state_of_before(tmp_path, monkeypatch):
    callback, trainer, module = saving(tmp_path)
    weight, written = module.backbone.weight, threading.Event()
    nn.init.ones_(weight)
    whole = torch.save
    monkeypatch.setattr("torch.save", lambda *args: (written.wait(10), whole(*args)))
    callback.on_train_epoch_end(trainer, module)  # returns, or the test waits for ten seconds
    nn.init.zeros_(weight)  # as an optimizer does, in place
    assert set(files(tmp_path)) <= {".last.ckpt.part"}, "nothing is finished while torch.save waits"
    written.set()
    callback.on_train_end(trainer, module)
    assert torch.load(tmp_path / "last.ckpt")["state_dict"]["backbone.weight"] == 1
    assert load_file(tmp_path / "backbone.safetensors")["weight"] == 1


def test_process_that_is_killed_while_it_writes_leaves_the_old_checkpoint_whole(tmp_path):
    if (child := os.fork()) == 0:
        try:
            save(tmp_path, 1)
            whole = torch.save
            torch.save = lambda content, f: (whole(content, f), f.truncate(500), f.flush(), time.sleep(60))
            save(tmp_path, 2)
        finally:
            os._exit(1)
    part, deadline = tmp_path / ".last.ckpt.part", time.monotonic() + 30
    while not (part.exists() and load_step(tmp_path) == 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert part.exists()
    assert load(tmp_path) == 1
    save(tmp_path, 3)
    assert (load(tmp_path), files(tmp_path)) == (3, ["last.ckpt", "previous.ckpt"])


def load_step(folder):
    return torch.load(folder / "last.ckpt")["step"] if (folder / "last.ckpt").exists() else None


@pytest.mark.parametrize("links", [True, False])
def test_kept_epochs_stay_and_are_hard_links_where_the_file_system_knows_them(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr("os.link", full_disk)
    callback, trainer, module = saving(tmp_path, keep_every=2)
    for _ in range(2):  # the second time as after a resume from before the epoch
        train(callback, trainer, module, 10)
        same = (tmp_path / "epoch-00002.ckpt").samefile(tmp_path / "last.ckpt")
        assert same == links
    trainer.global_step, trainer.current_epoch = 15, 2
    callback.on_train_epoch_end(trainer, module)
    callback.on_train_end(trainer, module)
    assert files(tmp_path) == ["backbone.safetensors", "epoch-00002.ckpt", "last.ckpt", "previous.ckpt"]
    assert (load(tmp_path), read_checkpoint(tmp_path / "epoch-00002.ckpt")["step"]) == (15, 10)


def first_ranks_clock(rank, world, folder, late):
    """The steps at which a rank begins a save by time, where the clock of one rank alone is late."""
    callback, trainer, module = saving(folder, 60, "seconds", log_every=3)
    trainer.is_global_zero, trainer.is_last_batch = rank == 0, False
    begun = []
    callback.begin = lambda *args: begun.append(trainer.global_step)
    callback.on_train_start(trainer, module)
    callback._last_save -= 100 * (rank == late)
    for step in range(1, 7):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, 0)
    return begun


def test_clock_of_the_first_rank_decides_for_all_where_numbers_are_logged(tmp_path, ranks):
    assert ranks(2).run(first_ranks_clock, tmp_path, 0) == [[3, 6], [3, 6]]
    assert ranks(2).run(first_ranks_clock, tmp_path, 1) == [[], []]


def test_writer_is_awaited_before_each_epoch_that_is_evaluated():
    """kNN evaluates every second of five epochs, and the last one."""
    io, waited = AtomicCheckpointIO(), []
    io.writer = SimpleNamespace(wait=lambda: waited.append(epoch))
    for epoch in range(1, 6):
        trainer = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=io), current_epoch=epoch - 1)
        WaitForSave(2, total_epochs=5).on_train_epoch_end(trainer, None)
    assert waited == [2, 4, 5]
