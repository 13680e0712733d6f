"""Every derived value, computed once, into new names."""

from argparse import Namespace

from utils.backbones import choose_stem
from utils.errors import UserError
from utils.hardware import choose_hardware, choose_precision


def resolve(args: Namespace, images: int, labelled: int, classes: int, fingerprint: str) -> Namespace:
    """The typed arguments and what follows from them for a training set of `images`, `labelled` of them with a label.

    fingerprint: of the training images, for methods that must know whose images these are.
    The learning rate is linear in the global batch: lr * batch_size * devices * nodes * accumulate / 256.
    """
    hardware = choose_hardware(args)
    per_batch = args.batch_size * hardware.processes
    per_step = per_batch * args.accumulate
    batches = images // per_batch
    _check_batch(args, images, per_batch, hardware.processes)
    steps_per_epoch = -(-batches // args.accumulate)  # the last, incomplete accumulation of an epoch steps too
    total_steps = args.steps or args.epochs * steps_per_epoch
    total_epochs = -(-total_steps // steps_per_epoch)
    precision, precision_reason = choose_precision(args.precision, hardware.accelerator)
    stem, stem_reason = choose_stem(args.stem, args.backbone, args.large_size)
    return Namespace(
        **vars(args),
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        nodes=hardware.nodes,
        processes=hardware.processes,
        global_batch=per_step,
        scaled_lr=args.lr * per_step / 256,
        probe_rate=args.probe_lr or (1e-3 if args.optimizer == "adamw" else 0.1),
        batches_per_epoch=batches,
        optimizer_steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        total_epochs=total_epochs,
        warmup_steps=_warmup_steps(args, total_steps, steps_per_epoch),
        images=images,
        fingerprint=fingerprint,
        num_classes=classes,
        knn_ks=[k for k in args.knn_k if k <= labelled],
        used_precision=precision,
        precision_reason=precision_reason,
        used_stem=stem,
        stem_reason=stem_reason,
    )


def _check_batch(args: Namespace, images: int, per_batch: int, processes: int) -> None:
    if args.batch_size < 2:
        raise UserError("--batch_size 1: batch norm and contrast need at least 2 images; raise it")
    if images < per_batch:
        raise UserError(
            f"the training set has {images} images, fewer than one global batch of {per_batch} (--batch_size "
            f"{args.batch_size} on {processes} processes); lower --batch_size to {images // processes} or less"
        )


def _warmup_steps(args: Namespace, total_steps: int, steps_per_epoch: int) -> int:
    if args.scheduler != "warmup_cosine":
        return 0
    if args.warmup_epochs is None:
        return min(10 * steps_per_epoch, total_steps // 10)
    steps = round(args.warmup_epochs * steps_per_epoch)
    if steps >= total_steps:
        raise UserError(f"--warmup_epochs {args.warmup_epochs:g} is {steps} steps of {total_steps} in all; lower it")
    return steps


def describe(args: Namespace) -> str:
    """What was typed beside what follows from it, a line each."""
    small = f" and {args.small_views} of {args.small_size} px" if args.small_views else ""
    warm = f", {args.warmup_steps} steps of warm-up" if args.warmup_steps else ""
    rows = {
        "device": f"{args.processes} x {args.accelerator}, {args.used_precision} ({args.precision_reason})",
        "backbone": f"{args.backbone}, {args.used_stem} stem ({args.stem_reason})",
        "views": f"{args.large_size} px{small}",
        "batch": f"{args.batch_size} x {args.processes} processes x {args.accumulate} = {args.global_batch} images",
        "learning rate": f"{args.lr:g} x {args.global_batch} / 256 = {args.scaled_lr:g} ({args.optimizer})",
        "schedule": args.scheduler + warm,
        "length": f"{args.total_steps} steps in {args.total_epochs} epochs of {args.optimizer_steps_per_epoch}",
    }
    if args.accumulate > 1:
        rows["accumulation"] = (
            f"negatives, batch norm and correlations see {args.global_batch // args.accumulate} at a time"
        )
    if args.knn_every and args.knn_ks != args.knn_k:
        rows["kNN"] = f"k = {args.knn_ks or 'none'} of {args.knn_k}: fewer labelled training images than that"
    if not args.wandb and (args.project != "lookalike" or args.entity or args.offline):
        rows["W&B"] = "off; --project, --entity and --offline do nothing without --wandb"
    return "\n".join(f"  {name:<14} {text}" for name, text in rows.items())
