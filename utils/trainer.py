"""Resolved arguments -> a Lightning Trainer."""

import logging
import warnings
from argparse import Namespace

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, Strategy

from utils.checkpoint import AtomicIO


def build_trainer(args: Namespace, callbacks: list[Callback], loggers: list[Logger], validate: bool) -> Trainer:
    """Lightning's own loop and DDP; what it would add of its own (bars, samplers, checkpoints) is ours."""
    quiet()
    strategy: Strategy | str = "auto"
    if args.processes > 1:
        # Batch norm is synchronized and queues are equal by construction: nothing to broadcast at each step.
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Trainer(
        accelerator="gpu" if args.accelerator == "cuda" else args.accelerator,
        devices=args.devices,
        num_nodes=args.nodes,
        strategy=strategy,
        precision=args.used_precision,
        max_epochs=args.total_epochs,
        max_steps=args.total_steps,
        accumulate_grad_batches=args.accumulate,
        gradient_clip_val=args.clip_grad,
        log_every_n_steps=args.log_every,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicIO()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def quiet() -> None:
    """Hide what Lightning says about things that are meant to be as they are."""
    for name in ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # device and stream have none, on purpose
        ".*smaller than the logging interval.*",  # short epochs are logged when their turn comes
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # Lightning against a newer torch
    ):
        warnings.filterwarnings("ignore", message)
