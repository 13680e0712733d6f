"""Resolve the flags of a pretraining command into its Plan, and print it."""

import dataclasses
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from cli.advice import advice
from cli.flags import DEFAULT_PROJECT, gpu_list
from utils.errors import UserError
from utils.hardware import choose_hardware, choose_precision
from utils.optim import OptimizerConfig, ScheduleConfig, lr_factor
from utils.plan import (
    BackboneConfig,
    BatchConfig,
    CheckpointConfig,
    DashboardConfig,
    HardwareConfig,
    LoggingConfig,
    Plan,
    TrainingSet,
    ViewsConfig,
)

LABEL_WIDTH = 16


def resolve(args: Namespace, training_set: TrainingSet, stem: tuple[str, str]) -> Plan:
    """The plan that follows from the flags for these training images. stem: the backbone's stem, and why.

    The learning rate is linear in the global batch: --lr * batch_size * processes * accumulate / 256.
    """
    hardware = _hardware(args)
    batch = BatchConfig(args.batch_size, hardware.processes, args.accumulate)
    _check_batch(batch, training_set.images)
    return Plan(
        method=args.method,
        seed=args.seed,
        hardware=hardware,
        batch=batch,
        optimizer=_optimizer(args, batch, hardware.precision),
        probe_lr=args.probe_lr or (1e-3 if args.optimizer == "adamw" else 0.1),
        schedule=_schedule(args, batch, training_set.images),
        views=_views(args),
        training_set=training_set,
        backbone=_backbone(args, stem),
        logging=LoggingConfig(
            log_every=args.log_every,
            knn_every=args.knn_every,
            knn_k=tuple(k for k in args.knn_k if k <= training_set.labelled_images),
            dashboard=dashboard_config(args, f"{args.method}-{args.dataset}-seed{args.seed}"),
            on_alarm=args.on_alarm,
        ),
        checkpoint=CheckpointConfig(args.checkpoint_every[0], args.checkpoint_every[1], args.keep_every),
    )


def data_source(args: Namespace) -> dict[str, Any]:
    """The flags that say which images to read, by the names of `read_dataset`'s arguments."""
    names = ("data_folder", "train_dir", "val_dir", "on_bad_image", "unlabelled", "image_column", "label_column")
    return {"name": args.dataset} | {name: getattr(args, name) for name in names}


def dashboard_config(args: Namespace, default_name: str) -> DashboardConfig:
    """The settings of Weights & Biases and of TensorBoard."""
    name = args.name or default_name
    return DashboardConfig(args.wandb, name, args.project, args.entity, args.offline, args.tensorboard)


def _hardware(args: Namespace) -> HardwareConfig:
    hardware = choose_hardware(args.accelerator, gpu_list(args), args.num_nodes)
    precision, reason = choose_precision(args.precision, hardware.accelerator)
    return dataclasses.replace(hardware, precision=precision, precision_reason=reason, compile=args.compile,
                               deterministic=args.deterministic)  # fmt: skip


def _backbone(args: Namespace, stem: tuple[str, str]) -> BackboneConfig:
    return BackboneConfig(
        name=args.backbone,
        stem=stem[0],
        stem_reason=stem[1],
        zero_init_residual=args.zero_init_residual,
        patch_size=args.patch_size,
        drop_path=args.drop_path,
        pool=args.pool,
    )


def _optimizer(args: Namespace, batch: BatchConfig, precision: str) -> OptimizerConfig:
    return OptimizerConfig(
        name=args.optimizer,
        lr=args.lr * batch.global_batch / 256,
        weight_decay=args.weight_decay,
        momentum=args.momentum,
        trust_coefficient=args.lars_eta,
        clip_trust_ratio=args.lars_clip,
        clip_grad=args.clip_grad or None,
        adam_betas=tuple(args.adam_betas),
        final_weight_decay=args.final_weight_decay,
        layer_decay=args.layer_decay,
        decay_norms=args.decay_norms,
        # Under 16-mixed a fused step unscales the gradients by itself, which is too late for clipping them.
        fused=not (precision == "16-mixed" and args.clip_grad),
    )


def _schedule(args: Namespace, batch: BatchConfig, images: int) -> ScheduleConfig:
    batches = images // batch.forward_batch
    steps_per_epoch = -(-batches // batch.accumulate)  # the last, incomplete accumulation of an epoch steps too
    total_steps = int(args.steps or args.epochs * steps_per_epoch)
    return ScheduleConfig(
        name=args.scheduler,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=_warmup_steps(args, total_steps, steps_per_epoch),
        decay_epochs=tuple(args.lr_decay_steps),
        decay_factor=args.lr_decay_factor,
        final_factor=args.final_lr / args.lr,
    )


def _warmup_steps(args: Namespace, total_steps: int, steps_per_epoch: int) -> int:
    if args.scheduler != "warmup_cosine":
        return 0
    if args.warmup_epochs is None:
        return min(10 * steps_per_epoch, total_steps // 10)
    steps: float = args.warmup_epochs * steps_per_epoch
    if round(min(steps, total_steps)) >= total_steps:
        raise UserError(f"--warmup_epochs {args.warmup_epochs:g} is {steps:.0f} of {total_steps} steps; lower it")
    return round(steps)


def _views(args: Namespace) -> ViewsConfig:
    return ViewsConfig(
        large_size=args.large_size,
        crop_scale=_groups(args.crop_scale, 2),
        small_views=args.small_views,
        small_size=args.small_size,
        small_scale=tuple(args.small_scale),
        flip=args.flip,
        jitter=tuple(args.jitter),
        jitter_strengths=_groups(args.jitter_strengths, 4),
        gray=tuple(args.gray),
        blur=tuple(args.blur),
        solarize=tuple(args.solarize),
    )


def _groups(values: Sequence[float], size: int) -> tuple[Any, ...]:
    """The values in tuples of `size`, one per view."""
    return tuple(tuple(values[i : i + size]) for i in range(0, len(values), size))


def _check_batch(batch: BatchConfig, images: int) -> None:
    if batch.batch_size < 2:
        raise UserError("--batch_size 1: batch norm and contrastive losses need at least 2 images; raise it")
    if images < batch.forward_batch:
        raise UserError(
            f"the training set has {images} images, fewer than one global batch of {batch.forward_batch} "
            f"(--batch_size {batch.batch_size} on {batch.processes} processes); lower --batch_size to "
            f"{images // batch.processes} or less"
        )


def describe(
    plan: Plan, pipeline: str, reason: str, method_settings: Mapping[str, Any], parameters: int, checkpoint_bytes: int
) -> str:
    """The plan as printed before training, a line per part.

    reason: for the pipeline. method_settings: the method's own flags. parameters: trainable ones. checkpoint_bytes:
    expected size of last.ckpt.
    """
    hardware, batch, optimizer, schedule = plan.hardware, plan.batch, plan.optimizer, plan.schedule
    steps = "step" if schedule.warmup_steps == 1 else "steps"
    warmup = f", {schedule.warmup_steps} {steps} of warm-up" if schedule.warmup_steps else ""
    small = f", {plan.views.small_views} of {plan.views.small_size} px" if plan.views.small_views else ""
    per_256 = optimizer.lr * 256 / batch.global_batch
    training_set = plan.training_set
    classes = training_set.num_classes or "no"
    rows = {
        "pipeline": f"{pipeline} ({reason})",
        "hardware": f"{hardware.processes} x {hardware.accelerator}, precision {hardware.precision} "
        f"({hardware.precision_reason})" + ", deterministic algorithms" * hardware.deterministic,
        "backbone": _describe_backbone(plan.backbone),
        "method": ", ".join(f"{name} {_text(value)}" for name, value in method_settings.items()) or "no settings",
        "parameters": f"{parameters / 1e6:,.2f} M trainable; a checkpoint takes about {_size(checkpoint_bytes)}",
        "views": f"{plan.views.large_size} px{small}; {_augmentations(plan.views)}",
        "batch": f"{batch.batch_size} x {batch.processes} processes x {batch.accumulate} accumulated "
        f"= {batch.global_batch} images",
        "learning rate": f"{per_256:g} x {batch.global_batch} / 256 = {optimizer.lr:g} "
        f"({optimizer.name}, weight decay {_weight_decay(optimizer)})",
        "schedule": schedule.name + warmup + _end(schedule) + _extension(schedule),
        "length": f"{schedule.total_steps} steps in {schedule.total_epochs} epochs of {schedule.steps_per_epoch} steps",
        "checkpoints": _checkpoints(plan.checkpoint),
        "disk": f"about {_size(disk_bytes(plan, checkpoint_bytes))} for checkpoints, with one that is being written",
    }
    if plan.teacher:
        rows["teacher"] = f"{plan.teacher.name}, {plan.teacher.stem} stem (of the weights), frozen"
    if batch.accumulate > 1:
        rows["accumulation"] = f"negatives, batch norm and correlations see {batch.forward_batch} images at a time"
    head = f"{plan.method} on {training_set.name}: {training_set.images:,} images, {classes} classes"
    return "\n".join([head, *(f"  {name:<{LABEL_WIDTH}} {text}" for name, text in rows.items())])


def _describe_backbone(backbone: BackboneConfig) -> str:
    parts = [backbone.name, f"{backbone.stem} stem ({backbone.stem_reason})"]
    parts += ["zero-init residual"] * backbone.zero_init_residual
    parts += [f"patches of {backbone.patch_size} px"] * bool(backbone.patch_size)
    parts += [f"drop path {backbone.drop_path:g}"] * bool(backbone.drop_path)
    parts += [{"token": "class token", "avg": "average of the tokens"}[backbone.pool]] if backbone.pool else []
    return ", ".join(parts)


def _weight_decay(optimizer: OptimizerConfig) -> str:
    final = optimizer.final_weight_decay
    changed = f" to {final:g}" if final is not None else ""
    return f"{optimizer.weight_decay:g}{changed}{', of norms too' if optimizer.decay_norms else ''}"


def _end(schedule: ScheduleConfig) -> str:
    """Where a cosine ends, if that is not 0."""
    return f", down to {schedule.final_factor:.2g} of the learning rate" if schedule.final_factor else ""


def _extension(schedule: ScheduleConfig) -> str:
    """What follows the schedule in a run that is longer."""
    if schedule.length == schedule.total_steps:
        return ""
    share = lr_factor(schedule)(schedule.length)
    return f", to its end after {schedule.length} steps, then constant at {share:.2g} of the learning rate"


def disk_bytes(plan: Plan, checkpoint_bytes: int) -> int:
    """Bytes that a run folder takes at most: the last checkpoint, the one before, a new one, and those that stay."""
    kept = plan.schedule.total_epochs // plan.checkpoint.keep_every if plan.checkpoint.keep_every else 0
    return (3 + kept) * checkpoint_bytes


def _free_bytes(folder: str) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    path = Path(folder).resolve()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


class MethodNotes(Protocol):
    """The part of a method that the notes need."""

    def notes(self) -> list[str]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def checkpoint_bytes(self) -> int: ...


def notes(plan: Plan, args: Namespace, method: MethodNotes | None = None) -> list[str]:
    """Remarks on flags that have no effect here or do not fit the training images, and those of the method."""
    remarks = method.notes() + advice(plan, method.modules()) if method else []
    labelled = plan.training_set.labelled_images
    if labelled and plan.logging.knn_every and list(plan.logging.knn_k) != list(args.knn_k):
        used, requested = (" ".join(map(str, ks)) or "none" for ks in (plan.logging.knn_k, args.knn_k))
        remarks.append(f"kNN with k = {used} of {requested}: {labelled:,} labelled images")
    if not args.wandb and args.project != DEFAULT_PROJECT:
        remarks.append("--project has no effect without --wandb")
    if method and (needed := disk_bytes(plan, method.checkpoint_bytes())) > (free := _free_bytes(args.output)):
        remarks.append(f"checkpoints need about {_size(needed)}, the disk of {args.output} has {_size(free)} free")
    return remarks


def _augmentations(views: ViewsConfig) -> str:
    crops, strengths = (" / ".join(map(_text, values)) for values in (views.crop_scale, views.jitter_strengths))
    return (
        f"crop {crops}, flip {views.flip:g}, jitter {_text(views.jitter)} ({strengths}), "
        f"gray {_text(views.gray)}, blur {_text(views.blur)}, solarize {_text(views.solarize)}"
    )


def _checkpoints(checkpoint: CheckpointConfig) -> str:
    """When checkpoints are written, in words."""
    number, unit = checkpoint.every, checkpoint.unit
    if unit == "seconds":
        length, unit = next((n, name) for n, name in ((3600, "h"), (60, "min"), (1, "s")) if number >= n or n == 1)
        number /= length
    elif number == 1:
        unit = unit.removesuffix("s")
    kept = checkpoint.keep_every
    return f"every {number:g} {unit}, and at the end of the run" + f"; one is kept every {kept} epochs" * bool(kept)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
