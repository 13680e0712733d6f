"""Lightly's methods for CIFAR.

`train`: SimCLR of its example, for speed, with the jitter at half strength and without blur, as in its benchmark.
`parts`: five methods as in its benchmark, for accuracy (bench/peers.py).
"""

import copy
import logging
import tempfile
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.sides import Settings, Work, waiting
from bench.task import WARM, WORKERS, Task
from bench.train import Clock
from bench.usual import EMBEDDING, HIDDEN
from data.datasets import Data
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


class Peer(pl.LightningModule):
    """Embeddings of two views under a loss; SGD, whose learning rate follows a cosine from epoch to epoch."""

    def __init__(self, backbone: nn.Module, head: nn.Module, criterion: nn.Module, epochs: int, batch_size: int):
        super().__init__()
        self.network, self.criterion = nn.Sequential(backbone, head), criterion
        self.epochs, self.batch_size = epochs, batch_size
        self.begun, self.seconds, self.numbers = 0.0, 0.0, dict[str, float]()

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):  # in float32, as Lookalike computes its losses
            value: Tensor = self.criterion(a.float(), b.float())
        return value

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(*(self.network(x) for x in batch))

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.06 * self.batch_size / 128, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]

    def on_train_epoch_start(self) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            seconds = time.perf_counter() - self.begun
            self.seconds += seconds
            rate = (batch_idx + 1) * self.batch_size / seconds
            self.numbers = {"loss": float(outputs["loss"]), "images_per_second": round(rate, 1)}
            shown = f"loss {self.numbers['loss']:.4f}  {rate:.0f} images/s"
            print(f"epoch {self.current_epoch + 1}/{self.epochs}  {shown}", flush=True)


class NNCLRPeer(Peer):
    """Predictions against the nearest of the last 4,096 projections to the projection of the other view."""

    def __init__(self, *args: Any):
        from lightly.models.modules import NNMemoryBankModule
        from lightly.models.modules.heads import NNCLRPredictionHead

        super().__init__(*args)
        self.predictor, self.bank = NNCLRPredictionHead(256, 4096, 256), NNMemoryBankModule(size=(4096, 256))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        z0, z1 = (self.network(x) for x in batch)
        n0, n1 = self.bank(z0.detach().float(), update=False), self.bank(z1.detach().float(), update=True)
        return 0.5 * (self.loss(n0, self.predictor(z1)) + self.loss(n1, self.predictor(z0)))


class BYOLPeer(Peer):
    """Predictions against the projection of the other view by a network that moves by a hundredth before each step."""

    def __init__(self, *args: Any):
        from lightly.models.modules.heads import BYOLPredictionHead

        super().__init__(*args)
        self.predictor = BYOLPredictionHead(256, 1024, 256)
        self.target = copy.deepcopy(self.network).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.network, self.target, m=0.99)
        (p0, z0), (p1, z1) = ((self.predictor(self.network(x)), self.target(x)) for x in batch)
        return 0.5 * (self.loss(p0, z1) + self.loss(p1, z0))


class VICRegPeer(Peer):
    """LARS with a warm-up of a tenth of the run, as in the benchmark on Imagenette; that on CIFAR-10 has no VICReg."""

    def configure_optimizers(self) -> Any:
        from lightly.utils.lars import LARS
        from lightly.utils.scheduler import CosineWarmupScheduler

        optimizer = LARS(self.parameters(), lr=0.3 * self.batch_size / 256, momentum=0.9, weight_decay=1e-4)
        return [optimizer], [CosineWarmupScheduler(optimizer, -(-self.epochs // 10), self.epochs)]


def parts(method: str, dim: int, size: int, data: Data) -> tuple[Any, type[Peer], nn.Module, nn.Module]:
    """(transform, module, head, loss) of a method for features of width dim and views of size pixels.

    Views are normalized as the images of the evaluation are.
    """
    from lightly import loss, transforms
    from lightly.models.modules import heads

    normalize = {"mean": list(data.mean), "std": list(data.std)}
    views: dict[str, Any] = {"input_size": size, "gaussian_blur": 0.0, "normalize": normalize}
    simclr, vicreg = (t(cj_strength=0.5, **views) for t in (transforms.SimCLRTransform, transforms.VICRegTransform))
    byol = transforms.BYOLTransform(transforms.BYOLView1Transform(**views), transforms.BYOLView2Transform(**views))
    hidden = (dim, 2048, nn.BatchNorm1d(2048), nn.ReLU())
    nnclr_head = heads.ProjectionHead([hidden, (2048, 256, nn.BatchNorm1d(256), None)])
    barlow_head = heads.ProjectionHead([hidden, (2048, 2048, None, None)])
    byol_head, cosine = heads.BYOLProjectionHead(dim, 1024, 256), loss.NegativeCosineSimilarity()
    return {
        "simclr": (simclr, Peer, heads.SimCLRProjectionHead(dim, 512, 128), loss.NTXentLoss()),
        "nnclr": (simclr, NNCLRPeer, nnclr_head, loss.NTXentLoss()),
        "byol": (byol, BYOLPeer, byol_head, cosine),
        "barlow_twins": (byol, Peer, barlow_head, loss.BarlowTwinsLoss()),
        "vicreg": (vicreg, VICRegPeer, heads.BarlowTwinsProjectionHead(dim, 2048, 2048), loss.VICRegLoss()),
    }[method]
