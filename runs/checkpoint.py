"""Checkpoints: written whole or not at all, verified before they are read, read without running code."""

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from backbones.load import save_backbone
from runs.lightning_internals import mark_epoch_completed
from utils.distributed import rank_zero_print, sum_over_ranks
from utils.errors import UserError
from utils.files import read_json, replaced_atomically, sync

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
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
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: str | None = None  # why the newest save failed; an error here would leave the other ranks waiting
        self._intact: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path, self.failure = Path(path), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(path) as part:
                with part.open("wb") as f:
                    torch.save(checkpoint, f)
                seal(part)
                sync(part)
                self._keep(path)
            self._intact.add(path)
        except UserError as e:
            self.failure = str(e)

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
    """Save last.ckpt and backbone.safetensors after every epoch, and when `save` is called.

    metadata: written into backbone.safetensors, with the numbers of completed epochs and optimizer steps.
    before_save: called on every rank; its error prevents the save.
    """

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, str],
        before_save: Callable[[Trainer, LightningModule], None] = lambda *_: None,
    ):
        self.folder, self.metadata, self.before_save = folder, metadata, before_save
        self._epoch_ends = False
        self._failure: str | None = None
        self._run: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the identity of the run, which its checkpoints carry; other machines may not see its folder."""
        settings = self.folder / "args.json"
        self._run = read_json(settings).get("run") if trainer.is_global_zero or settings.exists() else None

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files for the current step; a failure leaves what was there and is an error on every rank."""
        self.before_save(trainer, pl_module)
        self._failure = self._write(trainer, pl_module)
        if self._failure:
            raise UserError(self._failure)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Write both files; why that failed, on every rank, or None."""
        trainer.save_checkpoint(self.folder / LAST)
        failure: str | None = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if trainer.is_global_zero and not failure:
            # Lightning counts an epoch only after its last hook; the last step of a run may cut an epoch short.
            epochs = trainer.current_epoch + (self._epoch_ends and trainer.is_last_batch)
            metadata = self.metadata | {"epochs": str(epochs), "steps": str(trainer.global_step)}
            try:
                save_backbone(self.folder / "backbone.safetensors", pl_module.get_submodule("backbone"), metadata)
            except UserError as e:
                failure = str(e)
        failed = sum_over_ranks(torch.tensor(float(failure is not None), device=pl_module.device))
        return (failure or "the first rank could not save") if failed > 0 else None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; a full disk does not end the training: the next save may find room."""
        self.before_save(trainer, pl_module)
        self._epoch_ends = True
        self._failure = self._write(trainer, pl_module)
        self._epoch_ends = False
        if self._failure:
            rank_zero_print(f"  warning: {self._failure}; training goes on and saves again after the next epoch")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run whose last save failed is not done."""
        if self._failure:
            raise UserError(f"the end of the run is not saved: {self._failure}; resume the run to train it again")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self._run
        if self._epoch_ends:
            mark_epoch_completed(checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another run, which may have the same shapes."""
        if self._run and checkpoint.get("run") != self._run:
            raise UserError(
                f"the checkpoint in {self.folder} belongs to another run; put back that of this run, or start a new "
                f"run with --pretrained_feature_extractor"
            )
