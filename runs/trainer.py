"""Build the Lightning Trainer of a run."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import Strategy

from runs.alarms import Alarms
from runs.callbacks import ExpectedEnd, LogFirstAndLastStep, ProgressBar, Throughput
from runs.checkpoint import AtomicCheckpointIO, CheckpointCallback, WaitForSave
from runs.finite import NonFiniteLossCheck
from runs.loggers import TruncateMetricsOnResume
from runs.precision import build_precision
from runs.report import RunReport
from runs.resume import LearningRateOfPlan
from runs.signals import SignalHandler
from runs.strategy import FailingTogetherDDP
from utils.errors import UserError
from utils.plan import Plan

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # of these two values cuBLAS adds in one order
CUBLAS_DETERMINISTIC = (":4096:8", ":16:8")


def build_trainer(
    plan: Plan, folder: Path, callbacks: Sequence[Callback], loggers: Sequence[Logger], validate: bool
) -> Trainer:
    """A Trainer with Lightning's loop and DDP; its own progress bar, samplers, checkpoints and requeueing are off."""
    hardware = plan.hardware
    strategy: Strategy | str = "auto"
    if hardware.processes > 1:
        # Batch norm is synchronized and queues are equal by construction: nothing to broadcast at each step.
        strategy = FailingTogetherDDP(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Trainer(
        accelerator="gpu" if hardware.accelerator == "cuda" else hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=strategy,
        max_epochs=plan.schedule.total_epochs,
        max_steps=plan.schedule.total_steps,
        accumulate_grad_batches=plan.batch.accumulate,
        gradient_clip_val=plan.optimizer.clip_grad,
        log_every_n_steps=plan.logging.log_every,
        logger=list(loggers),
        callbacks=list(callbacks),
        plugins=[build_precision(hardware), AtomicCheckpointIO(), *slurm_without_requeueing()],
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
    plan: Plan, folder: Path, evaluations: Sequence[Callback], metadata: dict[str, str], report: RunReport
) -> list[Callback]:
    """The callbacks of a run in their order: the epoch is checked, then saved, then evaluated, and all of it printed.

    metadata: for backbone.safetensors. report: comes last, and knows the command that resumes the run.
    """
    finite = NonFiniteLossCheck(plan.logging.log_every, folder)
    checkpoint = CheckpointCallback(folder, metadata, plan.checkpoint, plan.logging.log_every, finite.check_before_save)
    throughput = Throughput(plan.hardware.processes)
    return [
        TruncateMetricsOnResume(),
        LogFirstAndLastStep(plan.logging.log_every, plan.schedule.total_steps),
        LearningRateOfPlan(),
        finite,
        Alarms(plan, folder, throughput),
        throughput,
        ExpectedEnd(plan.schedule.total_steps),
        checkpoint,
        WaitForSave(plan.logging.knn_every, plan.schedule.total_epochs),
        *evaluations,
        ProgressBar(plan.schedule, plan.logging, plan.batch.global_batch),
        SignalHandler(checkpoint, plan.batch, plan.logging, report.to_resume),
        report,
    ]


@contextlib.contextmanager
def expected_messages_hidden() -> Iterator[None]:
    """Hide Lightning's messages about settings that are chosen on purpose; filters and levels are put back."""
    names = ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector")
    levels = {logger: logger.level for logger in (logging.getLogger(f"pytorch_lightning.{name}") for name in names)}
    messages = (
        ".*does not have many workers.*",  # the memory and stream pipelines have threads instead
        ".*smaller than the logging interval.*",  # short epochs are logged when their turn comes
        ".*module\\(s\\) in eval mode at the start.*",  # a frozen teacher always is
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


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Let torch, cuDNN and cuBLAS compute by deterministic algorithms only; every setting is put back.

    An operation that has no such algorithm on the device is a UserError. cuBLAS reads its variable when the process
    first multiplies matrices on a GPU, so this must begin before.
    """
    if not enabled:
        yield
        return
    cudnn, variable = torch.backends.cudnn, os.environ.get(CUBLAS)
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    os.environ[CUBLAS] = variable if variable in CUBLAS_DETERMINISTIC else CUBLAS_DETERMINISTIC[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as e:
        if not (operation := re.search(r"(\S+) does not have a deterministic implementation", str(e))):
            raise
        raise UserError(
            f"--deterministic: torch has no deterministic algorithm for {operation[1]} on this device; choose another "
            f"backbone, or remove --deterministic"
        ) from e
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        cudnn.deterministic, cudnn.benchmark = before
        if variable is None:
            os.environ.pop(CUBLAS, None)
        else:
            os.environ[CUBLAS] = variable
