"""Base class of the methods: forward pass per view, online probe, optimizer, logging.

A method overrides `training_loss`, usually `__init__` and `add_args`, sometimes `length_defaults`, `transform_batch`,
`forward_views`, `eval_backbone`, `param_group_rules` and the class attributes of `Method`.
"""

from argparse import Namespace
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.arg_types import Rule
from utils.batch import Batch
from utils.distributed import mean_over_ranks, rank
from utils.errors import UserError
from utils.files import EVAL_BACKBONE
from utils.memory_layout import channels_last, fastest_layers
from utils.online_probe import OnlineProbe
from utils.optim import (
    FlagGroup,
    ParamGroupRule,
    apply_rules,
    build_optimizer,
    build_scheduler,
    layer_decay_rules,
    learning_rate,
    parameter_groups,
)
from utils.plan import Plan, is_logged_step
from utils.precision import refuse_wrong_bf16_gradients
from utils.step_modules import ScheduledValue, StepModule
from utils.view_features import ViewFeatures


class Method(LightningModule):
    """A self-supervised objective on top of a backbone.

    args: the flags that only this method reads. plan: the resolved run. backbone: maps (N, 3, H, W) to (N, dim).

    large_views: number of large views of an image that the method takes. supports_small_views: whether it takes small
    views too; no_small_views_reason: why not, for the error. num_choices: where the loss is a cross-entropy, among how
    many choices; a network that knows nothing has the logarithm of it. flag_rules: flags of the method that have no
    effect without another one. transformer_name: name in errors of a method that needs a vision transformer.
    """

    large_views = 2
    supports_small_views: bool = True
    no_small_views_reason: str = ""
    num_choices: int | None = None
    flag_rules: tuple[Rule, ...] = ()
    transformer_name: str | None = None

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
            reason = self.no_small_views_reason
            raise UserError(f"--small_views {plan.views.small_views}: {reason}; remove --small_views")
        refuse_wrong_bf16_gradients(backbone, plan.views.sizes, plan.hardware.precision, plan.hardware.accelerator)
        self.args, self.plan = args, plan
        self.backbone = backbone
        self.grad_norm: Tensor | None = None  # of the last optimizer step, on the device
        self.step_was_skipped = False  # the last optimizer step, by GradScaler
        self.optimizer_steps = 0  # taken so far; a resumed run continues to count
        classes = plan.training_set.num_classes
        self.probe = OnlineProbe(dim, classes) if classes else None

    def setup(self, stage: str) -> None:
        """Give the layers the forms that are fastest on the device."""
        fastest_layers(self, self.plan.hardware.accelerator, self.plan.hardware.precision)

    def transform_batch(self, batch: Batch) -> Batch:
        """Change the views before the backbone sees them.

        A view may get more rows; its first N rows must remain the images, which the online probe reads.
        """
        return batch

    def forward_views(self, batch: Batch) -> ViewFeatures:
        """Compute the backbone's features of the views: by default of each whole view once.

        A method may show masked views to the backbone, or ask it for tokens, and return a subclass of ViewFeatures.
        """
        feats = [self.backbone(view) for view in batch.views]  # batch norm sees one view at a time, as in the papers
        large = len(feats) - self.plan.views.small_views
        return ViewFeatures(feats[:large], feats[large:])

    def eval_backbone(self) -> nn.Module:
        """The network that is validated, evaluated and saved: of a student and a teacher one."""
        return self.backbone

    def param_group_rules(self) -> dict[str, ParamGroupRule]:
        """What the optimizer does otherwise with parameters whose names begin with a prefix; "" for all of them."""
        return {}

    def notes(self) -> list[str]:
        """Remarks on the settings, printed before training."""
        return []

    @property
    def epoch(self) -> float:
        """Epochs taken, with their fraction. A loss reads a `ScheduledValue` instead, which compiles once."""
        return self.optimizer_steps / self.plan.schedule.steps_per_epoch

    @property
    def progress(self) -> float:
        """Fraction of the schedules that the optimizer steps taken so far make up, in [0, 1]."""
        return self.plan.schedule.position(self.optimizer_steps) / self.plan.schedule.length

    def training_loss(self, feats: ViewFeatures, batch: Batch) -> dict[str, Tensor]:
        """Compute the objective of this rank's share of the batch.

        Returns scalars: the objective under "loss"; other entries are logged under their names. The gradient of the
        loss, averaged over ranks, must equal that of the loss of the whole batch on one process.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features (N, D) by which normalized images (N, 3, H, W) are evaluated."""
        features: Tensor = self.eval_backbone()(channels_last(x))
        return features

    def trainable_parameters(self) -> int:
        """Number of trainable parameters, including those of the heads and of the online probe."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def checkpoint_bytes(self) -> int:
        """Expected size of a checkpoint: parameters, buffers, and the optimizer's moments of each trained parameter."""
        moments = 2 if self.plan.optimizer.name == "adamw" else 1
        state = sum(v.nbytes for v in self.state_dict().values())
        return int(state + moments * sum(p.nbytes for p in self.parameters() if p.requires_grad))

    def compile_losses(self, mode: str | None = None) -> None:
        """Compile a training step's networks and losses as one graph of fixed sizes; evaluation is not compiled."""
        self._losses = torch.compile(self._losses, dynamic=False, mode=mode)  # type: ignore[method-assign]

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Output of `training_loss`, with the online probe's loss and accuracy where the data set has labels."""
        for module in self.modules():
            if isinstance(module, ScheduledValue):
                module.update(self.epoch, self.progress)
        return self._losses(batch)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.transform_batch(batch)
        batch = batch._replace(views=[channels_last(view) for view in batch.views])
        feats = self.forward_views(batch)
        out = self.training_loss(feats, batch)
        if self.probe is not None:
            views = [f[: len(batch.labels)] for f in feats.evaluated or feats.large]
            out |= self.probe.losses(torch.cat(views), batch.labels.repeat(len(views)))
        return out

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.compute_losses(batch)
        if self._is_log_step():
            self._log_metrics(out)
        return out["loss"] + out["probe_loss"] if self.probe is not None else out["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.probe is not None:
            self.probe.count(self(batch.views[0]), batch.labels)

    def on_validation_epoch_end(self) -> None:
        if self.probe is not None:
            self.log("val_probe_acc", self.probe.counted_accuracy())  # over all ranks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[EVAL_BACKBONE] = next(f"{k}." for k, m in self.named_modules() if m is self.eval_backbone())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.optimizer_steps = checkpoint["lr_schedulers"][0]["last_epoch"]  # steps that GradScaler skipped left out

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed random layers (dropout) by the position of the batch in the run, so that a resumed run is exact."""
        position = self.trainer.fit_loop.total_batch_idx * 2**16 + rank()
        torch.manual_seed((self.plan.seed * 0x9E3779B97F4A7C15 + position) % 2**63)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        apply_rules(optimizer.param_groups, self.epoch, self.progress)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step; where GradScaler skips the step, nothing else moves: no teacher, no queue and no learning rate."""
        super().optimizer_step(*args, **kwargs)
        self.step_was_skipped = getattr(self.trainer.precision_plugin, "step_was_skipped", False)
        if not self.step_was_skipped:
            self.after_optimizer_step()
            return
        for module in self.modules():
            if isinstance(module, StepModule):
                module.discard()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not self.step_was_skipped:
            super().lr_scheduler_step(scheduler, metric)

    def after_optimizer_step(self) -> None:
        """Move the queues, the teachers and what else is a `StepModule`, and count the step.

        Called once per optimizer step and not once per batch, so that accumulated batches count as one large batch.
        """
        for module in self.modules():
            if isinstance(module, StepModule):
                module.after_optimizer_step(self.progress)
        self.optimizer_steps += 1

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

    def build_optimizer(self) -> Optimizer:
        """The optimizer of all trainable parameters, under the method's rules."""
        config = self.plan.optimizer
        decayed = {} if config.layer_decay == 1 else layer_decay_rules(self.backbone, config.layer_decay)
        groups = parameter_groups(self, config, self.plan.probe_lr, decayed | self.param_group_rules())
        return build_optimizer(groups, config)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.build_optimizer()
        scheduler = build_scheduler(optimizer, self.plan.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _is_log_step(self) -> bool:
        """Whether this step is a row of metrics.csv; the metrics cost a reduction over ranks, so only then."""
        return is_logged_step(self.trainer.global_step + 1, self.plan.logging.log_every, self.plan.schedule.total_steps)

    def _log_metrics(self, out: dict[str, Tensor]) -> None:
        values = mean_over_ranks(torch.stack([v.detach().float() for v in out.values()]))
        lr = learning_rate(self.trainer.optimizers[0])
        self.log_dict(dict(zip(out, values, strict=True)) | {"lr": lr}, on_step=True, on_epoch=False)
