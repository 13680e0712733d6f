"""Checkpoints: written whole or not at all, verified before they are read, read without running code."""

import contextlib
import hashlib
import os
import shutil
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from backbones.load import read_metadata, read_tree, save_tensors
from runs.background import BackgroundWriter, copy_to_cpu
from runs.callbacks import is_logged
from runs.lightning_internals import mark_epoch_completed
from utils.distributed import rank_zero_print, sum_over_ranks, world_size
from utils.errors import UserError
from utils.files import EVAL_BACKBONE, read_json, replaced_atomically, sync
from utils.plan import CheckpointConfig, is_evaluated

LAST, PREVIOUS, WEIGHTS = "last.ckpt", "previous.ckpt", "backbone.safetensors"
DIGEST_BYTES = 64  # SHA-256 in hexadecimal, as the comment of the zip archive that a checkpoint is
BLOCK_BYTES = 2**22


def seal(path: Path) -> None:
    """Append the checksum of a file that torch.save wrote, as the archive's comment, which torch.load ignores."""
    with path.open("r+b") as f:
        f.seek(-2, os.SEEK_END)
        f.write(struct.pack("<H", DIGEST_BYTES))
    digest = _digest(path, path.stat().st_size)
    with path.open("ab") as f:
        f.write(digest)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint has a checksum and its bytes are still those that were written."""
    length = path.stat().st_size - DIGEST_BYTES
    if length <= 0:
        return False
    with path.open("rb") as f:
        f.seek(length)
        return f.read() == _digest(path, length)


def _digest(path: Path, length: int) -> bytes:
    """SHA-256 of the first `length` bytes of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as f:
        while length > 0 and (block := f.read(min(BLOCK_BYTES, length))):
            sha.update(block)
            length -= len(block)
    return sha.hexdigest().encode()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints of tensors and plain values: written beside the old one and moved over it, read without code.

    The one that last.ckpt replaces is kept as previous.ckpt, and read where last.ckpt is damaged or missing.
    Saving copies the state and returns; the thread of `writer` writes, and `writer.wait` tells whether that failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writer = BackgroundWriter()
        self._intact: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begin a save, after the end of the one before.

        storage_options: functions of the copied checkpoint, or None, called in their order once it is on the disk.
        """
        self.writer.clear()
        state = copy_to_cpu(checkpoint)
        afterwards = [partial(job, state) for job in storage_options or ()]
        self.writer.start(partial(self._write, state, Path(path)), *afterwards)

    def teardown(self) -> None:
        """Wait for the save that is under way, whatever ends the run."""
        self.writer.wait()

    def _write(self, state: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_atomically(path) as part:
            with part.open("wb") as f:
                torch.save(state, f)
            seal(part)
            sync(part)
            self._keep(path)
        self._intact.add(path)

    def _keep(self, path: Path) -> None:
        """Make last.ckpt previous.ckpt, unless it is damaged: then the older one is the better one."""
        if path.name == LAST and path.exists() and (path in self._intact or is_intact(path)):
            spare = path.with_name(f".{PREVIOUS}.part")
            spare.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a file system without hard links: for an instant there is no last.ckpt
                os.link(path, spare)
            try:
                os.replace(spare if spare.exists() else path, path.with_name(PREVIOUS))
            finally:
                spare.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(path)
        candidates = [path, path.with_name(PREVIOUS)] if path.name == LAST else [path]
        reasons = []
        for candidate in (c for c in candidates if c.exists()):
            try:
                checkpoint = read_checkpoint(candidate, map_location)
            except UserError as e:
                reasons.append(str(e))
                continue
            if reasons:
                rank_zero_print(f"  warning: {'; '.join(reasons)}: going on from {candidate.name}")
            elif candidate != path:
                rank_zero_print(f"  warning: {path} is missing: going on from {candidate.name}")
            return checkpoint
        raise UserError("; ".join(reasons) or f"{path} does not exist")


def read_checkpoint(path: Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint whose checksum is right; a damaged one is a UserError that names it."""
    try:
        if not is_intact(path):
            raise UserError(f"{path} is damaged or not a checkpoint (its checksum does not fit)")
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint
    except UserError:
        raise
    except Exception as e:  # a pickle of code, sealed on purpose: torch raises many kinds
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        raise UserError(f"{path} is not a readable checkpoint ({reason})") from e


class CheckpointCallback(Callback):
    """Save last.ckpt and backbone.safetensors when `config` says so, at the end of the run, and when `save` is called.

    Ranks agree without a message: on steps and epochs by counting. By time the first rank's clock decides; several
    ranks ask it only where numbers are logged (every `log_every` steps) and where an epoch ends.
    metadata: written into backbone.safetensors, with the numbers of completed epochs and optimizer steps.
    before_save: called on every rank; its error prevents the save.
    """

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, str],
        config: CheckpointConfig | None = None,
        log_every: int = 1,
        before_save: Callable[[Trainer, LightningModule], None] = lambda *_: None,
    ):
        self.folder, self.metadata, self.config = folder, metadata, config or CheckpointConfig()
        self.log_every, self.before_save = log_every, before_save
        self._epoch_ends = False
        self._saved_step = 0  # the step that the newest save holds, also while it is written
        self._last_save = 0.0  # seconds on the clock
        self._is_reported = True
        self._run: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the identity of the run, which its checkpoints carry; other machines may not see its folder."""
        settings = self.folder / "args.json"
        self._run = read_json(settings).get("run") if trainer.is_global_zero or settings.exists() else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step, self._last_save = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch; what is due at its last step, or at that of the run, is saved by on_train_epoch_end."""
        if _writer(trainer).is_idle:
            self._report(trainer)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = batch_idx + 1 == trainer.num_training_batches or trainer.global_step == trainer.max_steps
        if stepped and not last and self._is_due(trainer, pl_module):
            self.begin(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps or epochs == trainer.max_epochs
        by_epochs = self.config.unit == "epochs" and epochs % self.config.every == 0
        if ends or by_epochs or self._is_kept(trainer) or self._is_due(trainer, pl_module):
            self.save_epoch(trainer, pl_module)

    def save_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to save the end of an epoch, in on_train_epoch_end."""
        self._epoch_ends = True
        self.begin(trainer, pl_module)
        self._epoch_ends = False

    def is_saved(self, trainer: Trainer) -> bool:
        """Whether the current step is in a checkpoint, or is being written; equal on all ranks."""
        return self._saved_step == trainer.global_step

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return when the current step is on the disk; a failure leaves what was there and is an error on all ranks."""
        if not self.is_saved(trainer):
            self.begin(trainer, pl_module)
        if failure := self._wait_and_retry(trainer, pl_module):
            raise UserError(failure)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run whose last save failed is not done."""
        if failure := self._wait_and_retry(trainer, pl_module):
            raise UserError(f"the end of the run is not saved: {failure}; resume the run to train it again")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the save that is under way end, and tell if it failed."""
        _writer(trainer).wait()
        self._report(trainer, then="")

    def _is_due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether time or steps ask for a save now, on every rank alike."""
        if self.config.unit == "steps":
            return trainer.global_step % self.config.every == 0
        if self.config.unit != "seconds":
            return False
        late = time.monotonic() - self._last_save >= self.config.every and _writer(trainer).is_idle
        if world_size() == 1:
            return late
        if not (is_logged(trainer, self.log_every) or trainer.is_last_batch):
            return False
        first_rank_says = torch.tensor(float(late and trainer.is_global_zero), device=pl_module.device)
        return bool(sum_over_ranks(first_rank_says) > 0)

    def _is_kept(self, trainer: Trainer) -> bool:
        """Whether the epoch that ends now is one of --keep_every; the last step of a run may cut an epoch short."""
        every = self.config.keep_every
        return bool(every) and trainer.is_last_batch and (trainer.current_epoch + 1) % every == 0

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check and copy the state of the current step, and let the writer write it."""
        self.before_save(trainer, pl_module)
        _writer(trainer).wait()
        self._report(trainer)
        jobs = [self._write_backbone]
        if self._epoch_ends and self._is_kept(trainer):
            kept = self.folder / f"epoch-{self._completed_epochs(trainer):05}.ckpt"
            jobs.append(partial(_link, self.folder / LAST, kept))
        trainer.save_checkpoint(self.folder / LAST, storage_options=jobs)
        self._saved_step, self._last_save, self._is_reported = trainer.global_step, time.monotonic(), False

    def _completed_epochs(self, trainer: Trainer) -> int:
        """Lightning counts an epoch only after its last hook; the last step of a run may cut an epoch short."""
        return trainer.current_epoch + (self._epoch_ends and trainer.is_last_batch)

    def _write_backbone(self, checkpoint: dict[str, Any]) -> None:
        """Write the evaluated backbone of a checkpoint under the names of its own library."""
        prefix = checkpoint.get(EVAL_BACKBONE, "backbone.")
        tensors = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        metadata = {"epochs": str(checkpoint["epochs"]), "steps": str(checkpoint["global_step"])}
        save_tensors(self.folder / WEIGHTS, tensors, self.metadata | metadata)

    def _wait_and_retry(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Wait for the newest save, and try it once more where it failed; why it failed, on every rank, or None."""
        failure = _writer(trainer).retry()
        self._is_reported = True
        failed = sum_over_ranks(torch.tensor(float(failure is not None), device=pl_module.device))
        return (failure or "the first rank could not save") if failed > 0 else None

    def _report(self, trainer: Trainer, then: str = "; training goes on, and the next save is tried") -> None:
        """Tell once that a save failed; a full disk does not end the training: the next save may find room."""
        if not self._is_reported and (failure := _writer(trainer).failure):
            rank_zero_print(f"  warning: {failure}{then}")
            self._is_reported = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"], checkpoint["epochs"] = self._run, self._completed_epochs(trainer)
        if self._epoch_ends:
            mark_epoch_completed(checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another run, which may have the same shapes; write its backbone where that is due.

        A process that is killed between the two files leaves an older backbone, and a run that is done saves no more.
        """
        if self._run and checkpoint.get("run") != self._run:
            raise UserError(
                f"the checkpoint in {self.folder} belongs to another run; put back that of this run, or start a new "
                f"run with --pretrained_feature_extractor"
            )
        if trainer.is_global_zero and not _is_backbone_of(self.folder / WEIGHTS, checkpoint["global_step"]):
            try:
                self._write_backbone(checkpoint)
            except UserError as e:
                rank_zero_print(f"  warning: {e}")


class WaitForSave(Callback):
    """Wait for the writer before an epoch is evaluated: a process that is killed there must not lose the epoch."""

    def __init__(self, every: int, total_epochs: int):
        self.every, self.total_epochs = every, total_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_evaluated(trainer.current_epoch + 1, self.every, self.total_epochs):
            _writer(trainer).wait()


def _writer(trainer: Trainer) -> BackgroundWriter:
    """The writer of the run's checkpoints; on the other ranks one that is never at work."""
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, AtomicCheckpointIO)
    return io.writer


def _is_backbone_of(path: Path, step: int) -> bool:
    """Whether a file of weights is whole, and of this optimizer step or a later one."""
    try:
        read_tree(path)
        return int(read_metadata(path).get("steps", -1)) >= step
    except UserError:
        return False


def _link(source: Path, target: Path, _: dict[str, Any]) -> None:
    """Keep a file under a second name, as a hard link; a file system without them gets a copy."""
    if target.exists() and target.samefile(source):
        return
    with replaced_atomically(target) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
