"""What every method shares: the backbone once per view, the online probe, the optimizer, the log.

A method overrides `training_loss`, usually `__init__` and `add_args`, sometimes `prepare` and `constant_lr`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from utils.batch import Batch
from utils.distributed import mean_over_ranks, rank
from utils.ema import EMA
from utils.errors import UserError
from utils.optim import build_optimizer, build_scheduler, parameter_groups
from utils.precision import at_least_float32, normalize
from utils.queue import FeatureQueue


@dataclass(frozen=True)
class Features:
    """Backbone features (N, D), one tensor per view; `all` is `large` followed by `small`."""

    large: list[Tensor]
    small: list[Tensor]

    @property
    def all(self) -> list[Tensor]:
        return self.large + self.small


def view_pairs(views: Sequence[Tensor], large: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(something of view v, something of large view l) for all v != l; `views` begins with the large ones."""
    return [(a, b) for j, b in enumerate(large) for i, a in enumerate(views) if i != j]


def agreement(p: list[Tensor], z: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean cosine of predictions with targets, deviation of the coordinates of a unit target).

    p: (n, D) of all views, large ones first. z: (n, D) of the large ones, whose gradient is stopped. The cosine is
    averaged over images and over all pairs of a view and another, large one.
    """
    targets = [normalize(x).detach() for x in z]
    cosines = [(a * b).sum(dim=1).mean() for a, b in view_pairs([normalize(x) for x in p], targets)]
    return torch.stack(cosines).mean(), targets[0].std(dim=0).mean()


def fast_layout(x: Tensor) -> Tensor:
    """(N, 3, H, W) in the memory layout that convolutions are fastest in: channels last on CPU and CUDA."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


class Method(LightningModule):
    """One objective on top of one backbone.

    `args` are the resolved arguments, backbone maps (N, 3, H, W) to (N, dim). `large_views`: how many large views of an
    image the method takes. `no_small_views`: why it takes no small ones, where it does not. `constant_lr` names the
    submodule whose learning rate the schedule leaves alone.
    """

    large_views = 2
    no_small_views: str | None = None
    constant_lr: str | None = None

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """The flags that only this method reads, and its defaults of the shared ones."""

    def __init__(self, args: Namespace, backbone: nn.Module, dim: int):
        super().__init__()
        if args.small_views and self.no_small_views:
            raise UserError(f"--small_views {args.small_views}: {self.no_small_views}; leave it out")
        self.args = args
        self.backbone = backbone
        self.probe: nn.Module | None = None
        if args.num_classes:
            # Features are standardized first: one learning rate then suits backbones of any scale. The generator is put
            # back, so that the number of classes does not change what the method starts from.
            with torch.random.fork_rng(devices=[]):
                self.probe = nn.Sequential(nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, args.num_classes))
            self.val_accuracy = MulticlassAccuracy(args.num_classes, average="micro", ignore_index=-1)

    def prepare(self, batch: Batch) -> Batch:
        """Change the views before the backbone sees them. A view may grow: its first N rows remain the images."""
        return batch

    def training_loss(self, feats: Features, batch: Batch) -> dict[str, Tensor]:
        """The objective of this rank's share of the batch under "loss"; other entries are logged as they are.

        Its gradient, averaged over ranks, must be that of the loss of the whole batch on one process.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalized images -> (N, D) features."""
        return self.backbone(fast_layout(x))

    def compile_networks(self) -> None:
        """Compile what takes the time: the backbone and the teachers."""
        for network in [self.backbone, *(m for m in self.modules() if isinstance(m, EMA))]:
            network.compile()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """What `training_loss` returns, and the online probe's loss and accuracy where there are labels."""
        batch = self.prepare(batch)
        batch = batch._replace(views=[fast_layout(view) for view in batch.views])
        feats = [self(view) for view in batch.views]  # batch norm sees one view at a time, as in the papers
        large = len(feats) - self.args.small_views
        out = self.training_loss(Features(feats[:large], feats[large:]), batch)
        if self.probe is not None:
            n = len(batch.labels)
            out |= self._probe_step(torch.cat([f[:n] for f in feats[:large]]), batch.labels.repeat(large))
        return out

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.losses(batch)
        if self.logs_now():
            self._log(out)
        return out["loss"] + out["probe_loss"] if self.probe is not None else out["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.probe is not None:
            self.val_accuracy.update(self.probe(self(batch.views[0])).float(), batch.labels)

    def on_validation_epoch_end(self) -> None:
        if self.probe is not None:
            self.log("val_probe_acc", 100 * self.val_accuracy.compute())  # over all ranks
            self.val_accuracy.reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout and its like depend on where a step stands, not on what was drawn before: a run can be resumed."""
        where = self.trainer.fit_loop.total_batch_idx * 2**16 + rank()
        torch.manual_seed((self.args.seed * 0x9E3779B97F4A7C15 + where) % 2**63)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.advance(self.trainer.global_step / self.args.total_steps)

    def advance(self, done: float) -> None:
        """What follows an optimizer step: queues take in what waits, teachers move. Once per step, not once per batch,
        so that accumulation is one large batch to them. `done`: share of the run's steps before this one."""
        for module in self.modules():
            if isinstance(module, FeatureQueue):
                module.flush()
            elif isinstance(module, EMA):
                module.step(done)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, *_: Any, **__: Any) -> None:
        """--clip_grad bounds the method's gradient; the probe's has no part in it."""
        if gradient_clip_val:
            mine = [p for name, p in self.named_parameters() if not name.startswith("probe.")]
            nn.utils.clip_grad_norm_(mine, gradient_clip_val)

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self, self.args, self.constant_lr)
        optimizer = build_optimizer(groups, self.args)
        scheduler = build_scheduler(optimizer, self.args)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _probe_step(self, feats: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The online probe learns beside the method; its gradient ends at the detached features."""
        assert self.probe is not None
        logits = at_least_float32(self.probe(feats.detach()))
        # Known labels may be spread unevenly over ranks: the mean over all of them is not the mean of the ranks' means.
        known = mean_over_ranks((labels >= 0).sum().to(logits.dtype)).clamp(min=1e-6)
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / known
        return {"probe_loss": loss, "probe_acc": 100 * (logits.argmax(dim=1) == labels).sum() / known}

    def logs_now(self) -> bool:
        """Whether Lightning writes this step down: numbers cost a reduction over ranks, so only then."""
        return (self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % self.args.log_every == 0

    def _log(self, out: dict[str, Tensor]) -> None:
        values = mean_over_ranks(torch.stack([v.detach().float() for v in out.values()]))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict(dict(zip(out, values, strict=True)) | {"lr": rate}, on_step=True, on_epoch=False)
