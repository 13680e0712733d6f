"""Build the Lightning Trainer of a run."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy

from runs.alarms import Alarms
from runs.callbacks import ExpectedEnd, ProgressBar, Throughput
from runs.checkpoint import AtomicCheckpointIO, CheckpointCallback
from runs.finite import NonFiniteLossCheck
from runs.loggers import TruncateMetricsOnResume
from runs.signals import SignalHandler
from utils.plan import Plan


def build_trainer(
    plan: Plan, folder: Path, callbacks: Sequence[Callback], loggers: Sequence[Logger], validate: bool
) -> Trainer:
    """A Trainer with Lightning's loop and DDP; its own progress bar, samplers, checkpoints and requeueing are off."""
    hardware = plan.hardware
    strategy: Strategy | str = "auto"
    if hardware.processes > 1:
        # Batch norm is synchronized and queues are equal by construction: nothing to broadcast at each step.
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Trainer(
        accelerator="gpu" if hardware.accelerator == "cuda" else hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=strategy,
        precision=hardware.precision,  # type: ignore[arg-type]  # one of Lightning's literals
        max_epochs=plan.schedule.total_epochs,
        max_steps=plan.schedule.total_steps,
        accumulate_grad_batches=plan.batch.accumulate,
        gradient_clip_val=plan.optimizer.clip_grad,
        log_every_n_steps=plan.logging.log_every,
        logger=list(loggers),
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO(), *slurm_without_requeueing()],
        # Under SLURM Lightning starts from any hpc_ckpt_*.ckpt that lies here. A folder that is never made has none.
        default_root_dir=folder / "none",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def slurm_without_requeueing() -> list[SLURMEnvironment]:
    """SLURM's ranks as Lightning would read them, where it would; but it saves and requeues nothing by itself.

    It would write hpc_ckpt_1.ckpt at SIGUSR1, and requeue the job while SignalHandler saves the run.
    """
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # torchrun comes first, within a job too
        return [SLURMEnvironment(auto_requeue=False)]
    return []


def training_callbacks(
    plan: Plan, folder: Path, evaluations: Sequence[Callback], metadata: dict[str, str], resume_command: str
) -> list[Callback]:
    """The callbacks of a run in their order: the epoch is evaluated before it is saved, and checked before both.

    metadata: for backbone.safetensors. resume_command: printed when the run is interrupted.
    """
    finite = NonFiniteLossCheck(plan.logging.log_every, folder)
    checkpoint = CheckpointCallback(folder, metadata, before_save=finite.check)
    throughput = Throughput(plan.hardware.processes)
    return [
        TruncateMetricsOnResume(),
        finite,
        Alarms(plan, folder, throughput),
        throughput,
        ExpectedEnd(plan.schedule.total_steps),
        *evaluations,
        ProgressBar(plan.schedule, plan.logging),
        checkpoint,
        SignalHandler(checkpoint, plan.batch, plan.logging, resume_command),
    ]


@contextlib.contextmanager
def expected_messages_hidden() -> Iterator[None]:
    """Hide Lightning's messages about settings that are chosen on purpose; filters and levels are put back."""
    names = ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector")
    levels = {logger: logger.level for logger in (logging.getLogger(f"pytorch_lightning.{name}") for name in names)}
    messages = (
        ".*does not have many workers.*",  # the memory and stream pipelines have threads instead
        ".*smaller than the logging interval.*",  # short epochs are logged when their turn comes
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # Lightning against a newer torch
    )
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message)
        for logger in levels:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)
