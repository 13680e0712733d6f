"""Lightly's SimCLR for CIFAR: its example, with the jitter at half strength and without blur, as in its benchmark."""

import logging
import tempfile
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.sides import Settings, Work, waiting
from bench.task import WARM, WORKERS, Task
from bench.train import Clock
from bench.usual import EMBEDDING, HIDDEN
from utils.hardware import choose_precision


class SimCLR(pl.LightningModule):
    def __init__(self, backbone: nn.Module, dim: int):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(dim, HIDDEN, EMBEDDING)
        self.criterion = NTXentLoss()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        (x0, x1), _, _ = batch
        z0, z1 = (self.projection_head(self.backbone(x)) for x in (x0, x1))
        loss: Tensor = self.criterion(z0, z1)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


def train(settings: Settings, task: Task, own: bool = False) -> Work:
    """SimCLR by Lightly, with workers that stay between rounds.

    own: in Lightly's own precision, 32, instead of the one that Lookalike chooses.
    """
    from lightly.data import LightlyDataset
    from lightly.data.multi_view_collate import MultiViewCollate
    from lightly.transforms import SimCLRTransform

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    precision: Any = "32" if own else choose_precision(None, accelerator)[0]
    model = SimCLR(*task.backbone())
    transform = SimCLRTransform(input_size=task.size, cj_strength=0.5, gaussian_blur=0.0)
    images = LightlyDataset(str(task.folder(settings)), transform=transform)
    batches = DataLoader(images, task.batch_size, shuffle=True, drop_last=True, num_workers=WORKERS,
                         collate_fn=MultiViewCollate(), persistent_workers=True)  # fmt: skip

    def once() -> list[float]:
        clock = Clock(task)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(accelerator=accelerator, devices=1, precision=precision,
                                 max_steps=WARM + task.steps, callbacks=[clock], default_root_dir=folder)  # fmt: skip
            trainer.fit(model, batches)
        return clock.speed()

    return waiting(once, {"precision": precision})
