"""Stop a run where a signal asks for it: save, and leave with the status of the signal."""

import signal
import threading
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from runs.callbacks import is_logged
from runs.checkpoint import CheckpointCallback
from runs.folder import discard_unsaved
from runs.lightning_internals import write_step_metrics
from utils.distributed import sum_over_ranks, world_size
from utils.errors import STOP_SIGNALS, Interrupted, stop_signals
from utils.plan import BatchConfig, LoggingConfig


class SignalHandler(Callback):
    """Save and leave after the current optimizer step when one of STOP_SIGNALS comes.

    The handlers that were installed before are put back when training ends. resume_command: for the last message.
    """

    def __init__(self, checkpoint: CheckpointCallback, batch: BatchConfig, logging: LoggingConfig, resume_command: str):
        self.checkpoint, self.resume_command = checkpoint, resume_command
        self.accumulate, self.log_every = batch.accumulate, logging.log_every
        self._signal: int | None = None
        self._old_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._old_handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        """The first signal waits for the end of the step. Only a Ctrl-C after it does not wait.

        A cluster may send several: a warning, and the end of the job.
        """
        self._signal = self._signal or number
        if signal.SIGINT in self._old_handlers:
            signal.signal(signal.SIGINT, self._old_handlers[signal.SIGINT])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs, where the last one is evaluated, saved and logged, or before the first step."""
        number = self._signal_of_any_rank(pl_module)
        if number and trainer.global_step and self.checkpoint.is_saved(trainer):
            self.checkpoint.save(trainer, pl_module)  # waits until it is on the disk
            raise self._interrupted(trainer, number)
        if number and not trainer.global_step:
            name = signal.Signals(number).name
            raise Interrupted(f"Stopped by {name} before the first step; nothing to save: start the run again", number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free the name of a run that was stopped before it saved anything."""
        if isinstance(exception, Interrupted) and trainer.is_global_zero:
            discard_unsaved(self.checkpoint.folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where an optimizer step ends; after the last one of an epoch, it is evaluated and saved first."""
        last = batch_idx + 1 == trainer.num_training_batches
        stepped = (batch_idx + 1) % self.accumulate == 0
        compared = world_size() == 1 or is_logged(trainer, self.log_every)  # ranks compare only then, to stay fast
        if stepped and compared and not last and (number := self._signal_of_any_rank(pl_module)):
            write_step_metrics(trainer)  # Lightning would write this step's row after this hook
            self.checkpoint.save(trainer, pl_module)
            raise self._interrupted(trainer, number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, where CheckpointCallback did not, so that the run can stop before the next one."""
        if not self.checkpoint.is_saved(trainer) and self._signal_of_any_rank(pl_module):
            self.checkpoint.save_epoch(trainer, pl_module)

    def _interrupted(self, trainer: Trainer, number: int) -> Interrupted:
        return Interrupted(f"Interrupted at step {trainer.global_step}. Resume with: {self.resume_command}", number)

    def _signal_of_any_rank(self, pl_module: LightningModule) -> int | None:
        """The signal to leave with, the same on every rank: the first of STOP_SIGNALS that came to one of them."""
        if world_size() == 1:
            return self._signal
        came = torch.tensor([float(number == self._signal) for number in STOP_SIGNALS], device=pl_module.device)
        counts = sum_over_ranks(came).tolist()
        return next((number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()
