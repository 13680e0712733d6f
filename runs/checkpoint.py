"""Checkpoints: written whole or not at all, read without running code."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from backbones.load import save_backbone
from runs.lightning_internals import mark_epoch_completed
from utils.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints of tensors and plain values: written beside the old one and moved over it, read without code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        part = Path(f"{path}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as f:
                torch.save(checkpoint, f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(part, path)
        except OSError as e:
            part.unlink(missing_ok=True)
            raise UserError(f"cannot write {path} ({e.strerror}); the previous checkpoint is untouched") from e

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
            return checkpoint
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except Exception as e:  # truncated, tampered with, or a pickle of code: torch raises many kinds
            reason = next(iter(str(e).splitlines()), type(e).__name__)
            raise UserError(f"{path} is not a readable checkpoint ({reason})") from e


class CheckpointCallback(Callback):
    """Save last.ckpt and backbone.safetensors after every epoch, and when `save` is called.

    metadata: written into backbone.safetensors, with the numbers of completed epochs and optimizer steps.
    """

    def __init__(self, folder: Path, metadata: dict[str, str]):
        self.folder, self.metadata = folder, metadata
        self._epoch_ends = False

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files for the current step."""
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if trainer.is_global_zero:
            # Lightning counts an epoch only after its last hook; the last step of a run may cut an epoch short.
            epochs = trainer.current_epoch + (self._epoch_ends and trainer.is_last_batch)
            metadata = self.metadata | {"epochs": str(epochs), "steps": str(trainer.global_step)}
            backbone = pl_module.get_submodule("backbone")
            save_backbone(self.folder / "backbone.safetensors", backbone, metadata)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_ends = True
        self.save(trainer, pl_module)
        self._epoch_ends = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._epoch_ends:
            mark_epoch_completed(checkpoint)
