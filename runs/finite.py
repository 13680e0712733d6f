"""NaN never reaches a checkpoint: losses, gradients and weights are watched, and the run stops before it saves any."""

import contextlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from utils.distributed import gather
from utils.errors import UserError
from utils.files import write_json
from utils.optim import learning_rate

NEVER = 2**62  # the number of a step that never comes
REMEMBERED = 1024  # batches whose indices are kept until the flags are read


class NonFiniteLossCheck(Callback):
    """End the run with advice when a loss, a gradient norm or a weight is NaN or infinite, on every rank alike.

    Each step adds to flags on the device and does not wait for it. They are read where numbers are logged, at the end
    of an epoch, before every save and at the end of training. folder: gets post_mortem.json when the run is ended.
    """

    def __init__(self, log_every: int, folder: Path) -> None:
        self.log_every, self.folder = log_every, folder
        self._step = 0  # optimizer steps that were seen
        self._is_checked = False  # nothing was trained since `check`
        self._first_bad: dict[str, Tensor] = {}  # name -> step at which it first was not finite, on the device
        self._last_finite: dict[str, Tensor] = {}  # name -> its value before that
        self._batches: deque[tuple[int, float, Tensor]] = deque(maxlen=REMEMBERED)  # (step, learning rate, indices)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._is_checked = trainer.global_step, False
        self._batches.clear()
        for name in ("loss", "gradient norm"):
            self._first_bad[name] = torch.tensor(NEVER, device=pl_module.device)
            self._last_finite[name] = torch.tensor(float("nan"), device=pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._is_checked = False
        stepped = trainer.global_step > self._step  # an accumulated batch belongs to the step that comes
        self._step = trainer.global_step
        step = self._step if stepped else self._step + 1
        self._watch("loss", outputs["loss"] * trainer.accumulate_grad_batches, step)
        norm = getattr(pl_module, "grad_norm", None)
        if stepped and norm is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._watch("gradient norm", norm, step)  # under 16-mixed, steps of infinite gradients are skipped
        self._batches.append((step, learning_rate(trainer.optimizers[0]), batch.index))
        if stepped and self._step % self.log_every == 0:
            self._stop_if_bad(trainer, pl_module, dict(self._first_bad))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the flags, and look through everything that a checkpoint would hold; every rank must call."""
        held = [*pl_module.state_dict().values()]
        held += [v for optimizer in trainer.optimizers for state in optimizer.state.values() for v in state.values()]
        now = torch.tensor(max(self._step, trainer.global_step), device=pl_module.device)
        weights = torch.where(_all_finite(held, pl_module.device), NEVER, now)
        self._stop_if_bad(trainer, pl_module, self._first_bad | {"state of weights and optimizer": weights})
        self._is_checked = True

    def check_before_save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, unless that was done since the last batch, as it is where an epoch ends."""
        if not self._is_checked:
            self.check(trainer, pl_module)

    def _watch(self, name: str, value: Tensor, step: int) -> None:
        """Add a value to the flags; nothing here waits for the device."""
        value, first, last = value.detach().float(), self._first_bad[name], self._last_finite[name]
        finite = torch.isfinite(value)
        self._last_finite[name] = torch.where(finite & (first == NEVER), value, last)
        self._first_bad[name] = torch.where(finite, first, first.clamp(max=step))

    def _stop_if_bad(self, trainer: Trainer, pl_module: LightningModule, first_bad: dict[str, Tensor]) -> None:
        steps = gather(torch.stack(list(first_bad.values()))[None]).amin(dim=0).tolist()
        step = min(steps)
        if step == NEVER:
            self._forget(self._step)
            return
        what = list(first_bad)[steps.index(step)]
        found = [b for b in self._batches if b[0] == step] or list(self._batches)[-1:]
        indices: list[int] = []
        if found:
            indices = gather(torch.cat([b[2] for b in found]).to(pl_module.device)).tolist()
        path = self.folder / "post_mortem.json"
        if trainer.is_global_zero:
            report = {
                "what": f"the {what} is not finite",
                "step": step,
                "noticed_at_step": self._step,
                "last_finite": {name: float(value) for name, value in self._last_finite.items()},
                "lr": found[0][1] if found else learning_rate(trainer.optimizers[0]),
                "step_of_indices": found[0][0] if found else None,
                "indices": indices,
            }
            with contextlib.suppress(UserError):  # a full disk must not hide why the run ends
                write_json(path, report)
        raise UserError(
            f"the {what} is not finite at step {step}; try a lower --lr, or --precision 32; {path} has the details, "
            f"and the last checkpoint is untouched"
        )

    def _forget(self, step: int) -> None:
        """Drop the batches of steps before `step`, whose flags were read."""
        while self._batches and self._batches[0][0] < step:
            self._batches.popleft()


def _all_finite(values: Iterable[Any], device: torch.device) -> Tensor:
    """Whether every floating tensor among the values is finite, as a tensor."""
    tensors = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    return torch.stack([torch.isfinite(v).all().to(device) for v in tensors] or [torch.tensor(True)]).all()
