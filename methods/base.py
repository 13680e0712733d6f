"""What every method shares: the backbone once per view, the online probe, the optimizer, the log.

A method overrides `training_loss`, usually `__init__` and `add_args`, sometimes `transform_batch` and `constant_lr_module`.
"""

from argparse import Namespace
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
from utils.optim import FlagGroup, build_optimizer, build_scheduler, parameter_groups
from utils.plan import Plan
from utils.precision import at_least_float32, l2_normalize
from utils.queue import FeatureQueue


@dataclass(frozen=True)
class ViewFeatures:
    """Backbone features (N, D), one tensor per view; `all` is `large` followed by `small`."""

    large: list[Tensor]
    small: list[Tensor]

    @property
    def all(self) -> list[Tensor]:
        return self.large + self.small


def view_pairs(views: Sequence[Tensor], large: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(something of view v, something of large view l) for all v != l; `views` begins with the large ones."""
    return [(a, b) for j, b in enumerate(large) for i, a in enumerate(views) if i != j]


def mean_cosine(p: list[Tensor], z: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean cosine of predictions with targets, deviation of the coordinates of a unit target).

    p: (n, D) of all views, large ones first. z: (n, D) of the large ones, whose gradient is stopped. The cosine is
    averaged over images and over all pairs of a view and another, large one.
    """
    targets = [l2_normalize(x).detach() for x in z]
    cosines = [(a * b).sum(dim=1).mean() for a, b in view_pairs([l2_normalize(x) for x in p], targets)]
    return torch.stack(cosines).mean(), targets[0].std(dim=0).mean()


def channels_last(x: Tensor) -> Tensor:
    """(N, 3, H, W) in the memory layout that convolutions are fastest in: channels last on CPU and CUDA."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


class Method(LightningModule):
    """One objective on top of one backbone.

    `args` are the resolved arguments, backbone maps (N, 3, H, W) to (N, dim). `large_views`: how many large views of an
    image the method takes. `small_views_refusal`: why it takes no small ones, where it does not. `constant_lr_module` names the
    submodule whose learning rate the schedule leaves alone.
    """

    large_views = 2
    small_views_refusal: str | None = None
    constant_lr_module: str | None = None

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        """Add the flags that only this method reads, and set its defaults of shared flags."""

    @staticmethod
    def length_defaults(epochs: int) -> dict[str, Any]:
        """Defaults that depend on the length of the run, as flag name -> value."""
        return {}

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__()
        if plan.views.small_views and self.small_views_refusal:
            raise UserError(f"--small_views {plan.views.small_views}: {self.small_views_refusal}; remove it")
        self.args, self.plan = args, plan
        self.backbone = backbone
        self.probe: nn.Module | None = None
        if plan.training_set.num_classes:
            # Features are standardized first: one learning rate then suits backbones of any scale. The generator is put
            # back, so that the number of classes does not change what the method starts from.
            with torch.random.fork_rng(devices=[]):
                self.probe = nn.Sequential(
                    nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, plan.training_set.num_classes)
                )
            self.val_accuracy = MulticlassAccuracy(plan.training_set.num_classes, average="micro", ignore_index=-1)

    def transform_batch(self, batch: Batch) -> Batch:
        """Change the views before the backbone sees them. A view may grow: its first N rows remain the images."""
        return batch

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        """The objective of this rank's share of the batch under "loss"; other entries are logged as they are.

        Its gradient, averaged over ranks, must be that of the loss of the whole batch on one process.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalized images -> (N, D) features."""
        return self.backbone(channels_last(x))

    def trainable_parameters(self) -> int:
        """Number of trainable parameters, those of the heads and the online probe included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def checkpoint_bytes(self) -> int:
        """Expected size of a checkpoint: parameters, buffers, and the optimizer's moments of each trained parameter."""
        moments = 2 if self.plan.optimizer.name == "adamw" else 1
        state = sum(v.nbytes for v in self.state_dict().values())
        return state + moments * sum(p.nbytes for p in self.parameters() if p.requires_grad)

    def compile_networks(self) -> None:
        """Compile what takes the time: the backbone and the teachers."""
        for network in [self.backbone, *(m for m in self.modules() if isinstance(m, EMA))]:
            network.compile()

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """What `training_loss` returns, and the online probe's loss and accuracy where there are labels."""
        batch = self.transform_batch(batch)
        batch = batch._replace(views=[channels_last(view) for view in batch.views])
        feats = [self(view) for view in batch.views]  # batch norm sees one view at a time, as in the papers
        large = len(feats) - self.plan.views.small_views
        out = self.training_loss(ViewFeatures(feats[:large], feats[large:]), batch)
        if self.probe is not None:
            n = len(batch.labels)
            out |= self._probe_step(torch.cat([f[:n] for f in feats[:large]]), batch.labels.repeat(large))
        return out

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.compute_losses(batch)
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
        torch.manual_seed((self.plan.seed * 0x9E3779B97F4A7C15 + where) % 2**63)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step(self.trainer.global_step / self.plan.schedule.total_steps)

    def after_optimizer_step(self, done: float) -> None:
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
        config = self.plan.optimizer
        groups = parameter_groups(self, config.lr, config.weight_decay, self.plan.probe_lr, self.constant_lr_module)
        optimizer = build_optimizer(groups, config)
        scheduler = build_scheduler(optimizer, self.plan.schedule)
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
        return (self.trainer.global_step + 1) % self.plan.logging.log_every == 0

    def _log(self, out: dict[str, Tensor]) -> None:
        values = mean_over_ranks(torch.stack([v.detach().float() for v in out.values()]))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict(dict(zip(out, values, strict=True)) | {"lr": rate}, on_step=True, on_epoch=False)
