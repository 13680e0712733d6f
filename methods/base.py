"""Base class of the methods: forward pass per view, online probe, optimizer, logging.

A method overrides `training_loss`, usually `__init__` and `add_args`, sometimes `length_defaults`, `transform_batch`
and the class attributes of `Method`.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import SumMetric

from utils.arg_types import Rule
from utils.batch import Batch
from utils.distributed import mean_over_ranks, rank
from utils.ema import EMA
from utils.errors import UserError
from utils.memory_layout import channels_last, convolutions_channels_last
from utils.optim import FlagGroup, build_optimizer, build_scheduler, parameter_groups
from utils.plan import Plan
from utils.precision import at_least_float32, l2_normalize, refuse_wrong_bf16_gradients
from utils.queue import FeatureQueue


@dataclass(frozen=True)
class ViewFeatures:
    """Backbone features (N, D), one tensor per view; `all` is `large` followed by `small`."""

    large: list[Tensor]
    small: list[Tensor]

    @property
    def all(self) -> list[Tensor]:
        return self.large + self.small


T = TypeVar("T")


def view_pairs(views: Sequence[T], large: Sequence[T]) -> list[tuple[T, T]]:
    """Pairs (views[v], large[l]) of a view and another, large one (l != v); `views` begins with the large views."""
    return [(a, b) for j, b in enumerate(large) for i, a in enumerate(views) if i != j]


def mean_cosine(predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean cosine of predictions and targets over images and over all pairs of a view and another, large one.

    predictions: (n, D) of all views, large ones first. targets: (n, D) of the large views.
    """
    pairs = view_pairs([l2_normalize(p) for p in predictions], [l2_normalize(t) for t in targets])
    return torch.stack([(p * t).sum(dim=1).mean() for p, t in pairs]).mean()


def coordinate_std(z: Tensor) -> Tensor:
    """Standard deviation over the batch of the coordinates of z / |z|, averaged over coordinates; z: (n, D)."""
    return l2_normalize(z).std(dim=0).mean()


class Method(LightningModule):
    """A self-supervised objective on top of a backbone.

    args: the flags that only this method reads. plan: the resolved run. backbone: maps (N, 3, H, W) to (N, dim).

    large_views: number of large views of an image that the method takes. supports_small_views: whether it takes small
    views too; no_small_views_reason: why not, for the error. constant_lr_module: name of the submodule whose learning
    rate does not follow the schedule. num_choices: where the loss is a cross-entropy, among how many choices; a network
    that knows nothing has the logarithm of it. flag_rules: flags of the method that have no effect without another one.
    """

    large_views = 2
    supports_small_views: bool = True
    no_small_views_reason: str = ""
    constant_lr_module: str | None = None
    num_choices: int | None = None
    flag_rules: tuple[Rule, ...] = ()

    @staticmethod
    def add_args(parser: FlagGroup) -> None:
        """Add the flags that only this method reads, and set its defaults of shared flags."""

    @staticmethod
    def length_defaults(epochs: int) -> dict[str, Any]:
        """Defaults that depend on the number of epochs, as flag name -> value; stronger than those of `add_args`."""
        return {}

    def __init__(self, args: Namespace, plan: Plan, backbone: nn.Module, dim: int):
        super().__init__()
        if plan.views.small_views and not self.supports_small_views:
            raise UserError(
                f"--small_views {plan.views.small_views}: {self.no_small_views_reason}; remove --small_views"
            )
        refuse_wrong_bf16_gradients(backbone, plan.views.sizes, plan.hardware.precision, plan.hardware.accelerator)
        self.args, self.plan = args, plan
        self.backbone = backbone
        self.grad_norm: Tensor | None = None  # of the last optimizer step, on the device
        self.step_was_skipped = False  # the last optimizer step, by GradScaler
        self.probe: nn.Module | None = None
        if plan.training_set.num_classes:
            # Features are standardized first: one learning rate then suits backbones of any scale. The random generator
            # is restored, so that the number of classes does not change the initial weights of the method.
            with torch.random.fork_rng(devices=[]):
                self.probe = nn.Sequential(
                    nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, plan.training_set.num_classes)
                )
            # A search for NaN, and an accuracy of torchmetrics, would wait for the GPU in each batch.
            self.val_correct, self.val_known = (SumMetric(nan_strategy="disable") for _ in range(2))

    def setup(self, stage: str) -> None:
        """Give the weights of convolutions the memory layout of the images, on a GPU."""
        convolutions_channels_last(self, self.plan.hardware.accelerator)

    def transform_batch(self, batch: Batch) -> Batch:
        """Change the views before the backbone sees them.

        A view may get more rows; its first N rows must remain the images, which the online probe reads.
        """
        return batch

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        """Compute the objective of this rank's share of the batch.

        Returns scalars: the objective under "loss"; other entries are logged under their names. The gradient of the
        loss, averaged over ranks, must equal that of the loss of the whole batch on one process.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute the backbone's features (N, D) of normalized images (N, 3, H, W)."""
        features: Tensor = self.backbone(channels_last(x))
        return features

    def trainable_parameters(self) -> int:
        """Number of trainable parameters, including those of the heads and of the online probe."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def checkpoint_bytes(self) -> int:
        """Expected size of a checkpoint: parameters, buffers, and the optimizer's moments of each trained parameter."""
        moments = 2 if self.plan.optimizer.name == "adamw" else 1
        state = sum(v.nbytes for v in self.state_dict().values())
        return int(state + moments * sum(p.nbytes for p in self.parameters() if p.requires_grad))

    def compile_losses(self) -> None:
        """Compile a training step's networks and losses as one graph of fixed sizes; evaluation is not compiled."""
        self.compute_losses = torch.compile(self.compute_losses, dynamic=False)  # type: ignore[method-assign]

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Output of `training_loss`, with the online probe's loss and accuracy where the data set has labels."""
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
        if self._is_log_step():
            self._log_metrics(out)
        return out["loss"] + out["probe_loss"] if self.probe is not None else out["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.probe is not None:
            self.val_correct.update(self.probe(self(batch.views[0])).argmax(dim=1) == batch.labels)
            self.val_known.update(batch.labels >= 0)

    def on_validation_epoch_end(self) -> None:
        if self.probe is not None:
            known = self.val_known.compute().clamp(min=1)
            self.log("val_probe_acc", 100 * self.val_correct.compute() / known)  # over all ranks
            self.val_correct.reset()
            self.val_known.reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed random layers (dropout) by the position of the batch in the run, so that a resumed run is exact."""
        position = self.trainer.fit_loop.total_batch_idx * 2**16 + rank()
        torch.manual_seed((self.plan.seed * 0x9E3779B97F4A7C15 + position) % 2**63)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step; where GradScaler skips the step, nothing else moves: no teacher, no queue and no learning rate."""
        super().optimizer_step(*args, **kwargs)
        self.step_was_skipped = getattr(self.trainer.precision_plugin, "step_was_skipped", False)
        if self.step_was_skipped:
            for queue in (m for m in self.modules() if isinstance(m, FeatureQueue)):
                queue.discard()
            return
        schedule, done = self.plan.schedule, self.trainer.lr_scheduler_configs[0].scheduler.last_epoch
        self.after_optimizer_step(schedule.position(done) / schedule.length)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not self.step_was_skipped:
            super().lr_scheduler_step(scheduler, metric)

    def after_optimizer_step(self, progress: float) -> None:
        """Flush the queues and update the moving averages.

        Called once per optimizer step and not once per batch, so that accumulated batches count as one large batch.
        progress: fraction of the run's optimizer steps before this one.
        """
        for module in self.modules():
            if isinstance(module, FeatureQueue):
                module.flush()
            elif isinstance(module, EMA):
                module.update(progress)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Keep the gradient norm of the method, and clip it to --clip_grad; the online probe is left out of both."""
        counted = [p for name, p in self.named_parameters() if not name.startswith("probe.")]
        self.grad_norm = nn.utils.get_total_norm([p.grad for p in counted if p.grad is not None])
        if gradient_clip_val:
            nn.utils.clip_grads_with_norm_(counted, gradient_clip_val, self.grad_norm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.plan.optimizer
        groups = parameter_groups(self, config.lr, config.weight_decay, self.plan.probe_lr, self.constant_lr_module)
        optimizer = build_optimizer(groups, config)
        scheduler = build_scheduler(optimizer, self.plan.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _probe_step(self, feats: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy of the online probe on detached features (N, D) with labels (N,), -1 where unknown."""
        assert self.probe is not None
        logits = at_least_float32(self.probe(feats.detach()))
        # Ranks may have unequally many known labels: the mean over all of these is not the mean of the ranks' means.
        known = mean_over_ranks((labels >= 0).sum().to(logits.dtype)).clamp(min=1e-6)
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / known
        return {"probe_loss": loss, "probe_acc": 100 * (logits.argmax(dim=1) == labels).sum() / known}

    def _is_log_step(self) -> bool:
        """Whether this step is a row of metrics.csv; the metrics cost a reduction over ranks, so only then."""
        return (self.trainer.global_step + 1) % self.plan.logging.log_every == 0

    def _log_metrics(self, out: dict[str, Tensor]) -> None:
        values = mean_over_ranks(torch.stack([v.detach().float() for v in out.values()]))
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict(dict(zip(out, values, strict=True)) | {"lr": lr}, on_step=True, on_epoch=False)
