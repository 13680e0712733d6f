"""Remarks on settings that do not fit the number of training images or the length of the run."""

from collections.abc import Iterable

from torch import nn

from utils.plan import Plan
from utils.queue import FeatureQueue

FEW_STEPS = 10  # of an epoch, below which the batch is said to be large
LEFT_OUT = 0.1  # share of the images that the incomplete last batch of an epoch leaves out
LONG_WARMUP = 0.25  # share of the run


def advice(plan: Plan, modules: Iterable[nn.Module]) -> list[str]:
    """A phrase for each setting that does not fit: queue, batch, warm-up, rows of metrics.csv.

    modules: those of the method, among them its queues.
    """
    schedule, images, batch = plan.schedule, plan.training_set.images, plan.batch.forward_batch
    seen = images // batch * batch  # images of an epoch
    found = []
    queue = max((len(module.rows) for module in modules if isinstance(module, FeatureQueue)), default=0)
    if queue > seen:
        found.append(
            f"the queue of {queue:,} rows is larger than the {seen:,} images of an epoch, so it holds old embeddings "
            f"of the same images; a queue of at most {seen:,} rows has none"
        )
    if schedule.steps_per_epoch < FEW_STEPS:
        found.append(
            f"an epoch has {schedule.steps_per_epoch} steps of {plan.batch.global_batch:,} images; a smaller "
            f"--batch_size gives more steps"
        )
    if images - seen >= LEFT_OUT * images:
        found.append(
            f"each epoch leaves out {images - seen:,} of {images:,} images, other ones each time: they do not fill a "
            f"batch of {batch:,}"
        )
    if schedule.warmup_steps > LONG_WARMUP * schedule.total_steps:
        found.append(
            f"the warm-up takes {schedule.warmup_steps:,} of {schedule.total_steps:,} steps; lower --warmup_epochs, or "
            f"train longer"
        )
    if plan.logging.log_every > schedule.total_steps:
        found.append(
            f"--log_every {plan.logging.log_every} is beyond the {schedule.total_steps} steps of the run, so there is "
            f"no curve of the loss; lower it"
        )
    return found
