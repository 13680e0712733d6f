"""The handler of signals without a Trainer."""

import signal
from types import SimpleNamespace

import pytest
import torch

from runs.signals import SignalHandler
from utils.errors import STOP_SIGNALS, Interrupted

MODULE = SimpleNamespace(device=torch.device("cpu"))


def handler(folder=None, log_every=1, saved=True):
    """A handler of signals, and a run whose epochs are saved as they end, or not."""
    batch, logging = SimpleNamespace(accumulate=1), SimpleNamespace(log_every=log_every)
    checkpoint = SimpleNamespace(folder=folder, saved=[0] * saved, is_saved=lambda trainer: bool(checkpoint.saved))
    checkpoint.save = checkpoint.save_epoch = lambda *args: checkpoint.saved.append(1)
    return SignalHandler(checkpoint, batch, logging, "COMMAND")


def test_signal_handler_puts_the_old_handlers_back():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    callback = handler()
    callback.on_train_start(None, None)
    assert all(signal.getsignal(number) == callback._on_signal for number in STOP_SIGNALS)
    callback.teardown(None, None, "fit")
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_only_ctrl_c_does_not_wait_after_a_signal():
    callback = handler()
    callback.on_train_start(None, None)
    try:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert callback._signal == signal.SIGUSR1
    finally:
        callback.teardown(None, None, "fit")


def test_sighup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    callback = handler()
    try:
        callback.on_train_start(None, None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        callback.teardown(None, None, "fit")
        signal.signal(signal.SIGHUP, before)


def test_signal_before_the_first_step_frees_the_name_of_the_run(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "args.json").touch()
    callback, trainer = handler(tmp_path / "r"), SimpleNamespace(global_step=0, is_global_zero=True)
    callback.on_train_epoch_start(trainer, MODULE)
    callback._on_signal(signal.SIGHUP, None)
    with pytest.raises(Interrupted, match="SIGHUP before the first step") as e:
        callback.on_train_epoch_start(trainer, MODULE)
    assert e.value.code == 129
    callback.on_exception(trainer, None, RuntimeError())
    assert (tmp_path / "r").exists()
    callback.on_exception(trainer, None, e.value)
    assert not (tmp_path / "r").exists()


def test_run_stops_between_two_epochs_only_where_the_last_one_is_saved():
    callback, trainer = handler(saved=False), SimpleNamespace(global_step=5)
    callback.on_train_epoch_end(trainer, MODULE)
    assert not callback.checkpoint.saved, "no signal came"
    callback._on_signal(signal.SIGTERM, None)
    callback.on_train_epoch_start(trainer, MODULE)  # it came after the end of the epoch: the next step will be saved
    callback.on_train_epoch_end(trainer, MODULE)
    assert callback.checkpoint.saved
    with pytest.raises(Interrupted, match="at step 5"):
        callback.on_train_epoch_start(trainer, MODULE)
    assert len(callback.checkpoint.saved) == 2, "it waits for the writer before it says so"


def left_by(rank, world, came):
    """What a rank does whose log interval is the epoch, when a signal came to one of the ranks."""
    callback = handler(log_every=5)
    callback._signal = came[rank]
    trainer = SimpleNamespace(global_step=4, num_training_batches=5)
    callback.on_train_batch_end(trainer, MODULE, None, None, 3)  # a step that is not logged: nothing is compared
    trainer.global_step = 5
    callback.on_train_batch_end(trainer, MODULE, None, None, 4)  # the last one of the epoch, which is saved first
    try:
        callback.on_train_epoch_start(trainer, MODULE)
    except Interrupted as e:
        return str(e), e.code
    return None


@pytest.mark.parametrize("came", [(None, 15), (10, 15), (15, 2)])
def test_ranks_that_log_once_an_epoch_stop_between_epochs_with_one_code(ranks, came):
    results = ranks(2).run(left_by, came)
    assert results == [("Interrupted at step 5. Resume with: COMMAND", 143)] * 2
    assert ranks(2).run(left_by, (None, None)) == [None, None]
