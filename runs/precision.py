"""Mixed precision of a run: Lightning's plugin, with the cache of autocast, and with knowledge of skipped steps."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins import precision as lightning

from utils.plan import HardwareConfig


class MixedPrecision(lightning.MixedPrecision):
    """Autocast that casts each weight once per step on a GPU, where Lightning's casts it for every view.

    The gradients of the views are then added in half precision before they reach the weights, as in torch's default.
    On CPU weights are cast for every view, as runs there always did.

    step_was_skipped: whether GradScaler skipped the newest optimizer step because a gradient was not finite. The scale,
    which then shrinks, is read from the device after each step of 16-mixed, and the host waits for it: it decides
    whether teacher, queue and learning rate move. A checkpoint has the scale under the name of this class, which is
    that of Lightning's.
    """

    step_was_skipped = False
    _scale: float | None = None  # after the newest step

    def autocast_context_manager(self) -> torch.autocast:
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device, dtype=dtype, cache_enabled=self.device == "cuda")

    def optimizer_step(  # type: ignore[override]  # as Lightning's own
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        if self.scaler is None:
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        before = self._scale or self.scaler.get_scale()
        result = super().optimizer_step(optimizer, model, closure, **kwargs)
        self._scale = self.scaler.get_scale()
        self.step_was_skipped = self._scale < before
        return result


def build_precision(hardware: HardwareConfig) -> lightning.Precision:
    """The plugin of the Trainer for `hardware.precision`."""
    if hardware.precision == "32":
        return lightning.Precision()
    return MixedPrecision(hardware.precision, hardware.accelerator)  # type: ignore[arg-type]  # a literal
