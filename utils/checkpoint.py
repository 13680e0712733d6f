"""Save so that a run can go on exactly, however it ended; go on."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from utils.distributed import sum_over_ranks, world_size
from utils.errors import Stopped, UserError
from utils.logs import MetricsCSV
from utils.weights import save_backbone


class AtomicIO(TorchCheckpointIO):
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
            raise UserError(f"cannot write {path} ({e.strerror}); the checkpoint before it is untouched") from e

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except Exception as e:  # truncated, tampered with, or wanting to run code: torch raises many kinds
            reason = next(iter(str(e).splitlines()), type(e).__name__)
            raise UserError(f"{path} is not a readable checkpoint ({reason})") from e


class Saver(Callback):
    """last.ckpt and backbone.safetensors after every epoch, and after the step in which Ctrl-C or SIGTERM came."""

    def __init__(self, folder: Path, metadata: dict[str, str]):
        self.folder, self.metadata = folder, metadata
        self._asked = self._epoch_ends = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.forget_from(trainer.global_step)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        """The first signal waits for the end of the step; a second one does not wait."""
        self._asked = True
        for known, handler in self._before.items():
            signal.signal(known, handler)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop where an optimizer step ends; after the last one of an epoch, the epoch is judged and saved first."""
        last = batch_idx + 1 == trainer.num_training_batches
        stepped = (batch_idx + 1) % pl_module.args.accumulate == 0
        often = world_size() == 1 or trainer.global_step % pl_module.args.log_every == 0
        if stepped and often and not last and self._agreed(pl_module):
            trainer._logger_connector.update_train_step_metrics()  # Lightning would write this step's row after us
            self._save(trainer, pl_module)
            raise Stopped(
                f"stopped after step {trainer.global_step}; go on with: "
                f"python3 main_contrastive.py --resume {self.folder}"
            )

    def _agreed(self, pl_module: Any) -> bool:
        """Whether any rank was asked to stop; several ranks compare notes only where they log, to stay fast."""
        if world_size() == 1:
            return self._asked
        return bool(sum_over_ranks(torch.tensor(float(self._asked), device=pl_module.device)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._epoch_ends = True
        self._save(trainer, pl_module)
        self._epoch_ends = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """An epoch's checkpoint says that the epoch is over, which Lightning's counters do only after this hook."""
        if self._epoch_ends:
            loop = checkpoint["loops"]["fit_loop"]
            for count in (loop["epoch_progress"]["current"], loop["epoch_progress"]["total"]):
                count["completed"] = count["processed"]
            for name in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
                loop[name]["current"] = dict.fromkeys(loop[name]["current"], 0)
                loop[name]["is_last_batch"] = False
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # a restart adds one, as for a stop within

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _save(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if trainer.is_global_zero:
            metadata = self.metadata | {"epoch": str(trainer.current_epoch), "step": str(trainer.global_step)}
            save_backbone(self.folder / "backbone.safetensors", pl_module.backbone, metadata)
