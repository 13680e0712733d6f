"""Some steps of training with the Trainer and the callbacks of a run, on the CPU or on the pretended CUDA device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from torch import nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from data.pipelines.choose import build_pipeline
from data.pipelines.loaders import identity_collate
from data.views import view_specs
from methods.base import Method
from runs.alarms import Alarms
from runs.callbacks import ExpectedEnd, ProgressBar, Throughput
from runs.finite import NonFiniteLossCheck
from runs.resume import LearningRateOfPlan
from runs.trainer import build_trainer, expected_messages_hidden
from tests.helpers.commands import construct, plan_of
from tests.helpers.images import read
from tests.helpers.method_cases import backbone_of, every_case
from tests.helpers.pretended_cuda import on_host
from utils.batch import Batch

BATCH_SIZE = 8
SCALE = 2.0**11  # of the loss under 16-mixed: torch's own, 2**16, overflows in the first steps by itself
WITH_OPTIONS = ("byol --clip_grad 1", "simclr --optimizer adamw", "nnclr --optimizer sgd")
VARIANTS = {case: (case.split()[0], tuple(case.split()[1:])) for case in (*every_case(), *WITH_OPTIONS)}


AtEnd = Callable[[Trainer, Method], None]


class SmallConvolutions(nn.Module):
    """A backbone of two convolutions: (N, 3, H, W) -> (N, 12)."""

    width = 12

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1, bias=False),
            nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


@dataclass
class Training:
    """What a short training left behind.

    start, states: parameters and buffers, on the CPU, before the first step and after each. rates: learning rate of
    each step. waits, launches, bytes: what the device counted in the last step but one, and in fetching the next batch;
    launches and bytes are those of the stream that trains.
    """

    method: Any
    start: dict[str, torch.Tensor]
    trainer: Any = None
    states: list[dict[str, torch.Tensor]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    waits: dict[tuple[str, str, str], int] = field(default_factory=dict)
    launches: int = 0
    bytes: int = 0

    @property
    def waits_of_training(self) -> dict[str, int]:
        """Waits of the stream that trains: where and what -> how often."""
        return {f"{place}: {what}": n for (stream, what, place), n in self.waits.items() if stream == "training"}


class Record(Callback):
    """Fill a `Training` of `steps` steps. overflow: those whose gradients are made infinite. at_end: called last."""

    def __init__(self, training: Training, device: Any, steps: int, overflow: tuple[int, ...], at_end: AtEnd):
        self.training, self.device, self.steps, self.overflow, self.at_end = training, device, steps, overflow, at_end

    def on_train_end(self, trainer, pl_module):
        self.at_end(trainer, pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:  # what the beginning of an epoch computes is there
            self.training.start = state_of(pl_module)
        if self.device is None:
            return
        if batch_idx == self.steps - 2:
            self.device.reset()
        elif batch_idx == self.steps - 1:  # a whole step later
            self.training.waits = dict(self.device.waits)
            self.training.launches = sum(n for (stream, _), n in self.device.launches.items() if stream == "training")
            self.training.bytes = self.device.bytes["training"]

    def on_after_backward(self, trainer, pl_module):
        if trainer.fit_loop.batch_idx in self.overflow:
            for p in pl_module.parameters():
                if p.grad is not None:
                    p.grad.fill_(torch.inf)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.training.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.training.losses.append(on_host(outputs["loss"]).item())
        self.training.states.append(state_of(pl_module))


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers on the CPU."""
    return {name: on_host(value).clone() for name, value in module.state_dict().items()}


def largest_difference(a: Training, b: Training) -> float:
    """Largest difference of a parameter or buffer after the last step, relative to the largest of its tensor."""
    pairs = [(x.double(), b.states[-1][name].double()) for name, x in a.states[-1].items()]
    return max(((x - y).abs().max() / x.abs().max().clamp(min=1e-3)).item() for x, y in pairs)


def moved_by_step(run: Training, step: int) -> list[str]:
    """What a step moved, of weights, teacher, queue and learning-rate schedule."""
    before = run.states[step - 1] if step else run.start
    changed = [name for name, value in run.states[step].items() if not torch.equal(value, before[name])]
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm: they move in the forward pass
    changed = [name for name in changed if not name.endswith(statistics)]
    moved = [part for part in ("teacher", "queue") if any(part in name.split(".") for name in changed)]
    weights = [name for name in changed if name.split(".")[0] not in ("target", "queue")]
    schedule = step + 1 < len(run.rates) and run.rates[step] != run.rates[step + 1]
    return ["weights"] * bool(weights) + moved + ["schedule"] * schedule


def random_batches(method, numbers: Sequence[int]) -> list[Batch]:
    """Batches of standard normal views of 16 and 8 pixels, on the CPU, each drawn by its number."""
    sizes = [16] * method.large_views + [8] * method.plan.views.small_views
    batches = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        views = [torch.randn(BATCH_SIZE, 3, size, size, generator=generator) for size in sizes]
        index = torch.arange(BATCH_SIZE)
        batches.append(Batch(index, views, index % 3))
    return batches


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.index.to(device), [view.to(device) for view in batch.views], batch.labels.to(device))


class ReadyBatches(LightningDataModule):
    """Batches that are on the device before training begins.

    augmented: the batches that stand for all images, where a method looks at these without training.
    """

    def __init__(self, batches: list[Batch], augmented: list[Batch]):
        super().__init__()
        self.batches, self.augmented = batches, augmented

    def augmented_loader(self, rows: list[int], device: torch.device) -> list[Batch]:
        return self.augmented

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None, collate_fn=identity_collate)

    val_dataloader = train_dataloader


def train(
    folder: Path, name: str, *words: str, device: Any = None, pipeline: str | None = None,
    batches: Sequence[int] = range(4), overflow: tuple[int, ...] = (), at_end: AtEnd = lambda trainer, method: None,
) -> Training:  # fmt: skip
    """Train a step of the method for each of `batches`, numbers of random batches that are on the device.

    device: the pretended one, None for the CPU. pipeline: makes as many batches of the digits instead. overflow: the
    steps whose gradients are made infinite. at_end: called while method and optimizers are still on the device.
    """
    where, accelerator = (("--gpus", str(device.cuda.index)), "cuda") if device else (("--accelerator", "cpu"), "cpu")
    words = ("--batch_size", str(BATCH_SIZE), "--epochs", "1", "--log_every", "1000", "--num_workers", "0", *words)
    torch.manual_seed(0)
    args, plan = plan_of(name, *where, *words)
    network = backbone_of(name, SmallConvolutions, size=16, patch=4, dim=SmallConvolutions.width)
    method = construct(args, plan, network, SmallConvolutions.width)
    training, throughput = Training(method, state_of(method)), Throughput(1)
    callbacks = [
        LearningRateOfPlan(), NonFiniteLossCheck(plan.logging.log_every, folder), Alarms(plan, folder, throughput),
        throughput, ExpectedEnd(plan.schedule.total_steps),
        ProgressBar(plan.schedule, plan.logging, plan.batch.global_batch),
        Record(training, device, len(batches), overflow, at_end),
    ]  # fmt: skip
    if pipeline:
        specs = view_specs(plan.views, method.large_views)
        module = build_pipeline(pipeline, read(), specs, BATCH_SIZE, plan.seed, 0, None, accelerator)
    else:
        target = device.cuda if device else torch.device("cpu")
        ready, augmented = (
            [to_device(b, target) for b in random_batches(method, numbers)] for numbers in (batches, [0])
        )
        module = ReadyBatches(ready, augmented)
    with expected_messages_hidden():
        training.trainer = trainer = build_trainer(plan, folder, callbacks, [], validate=False)
        trainer.limit_train_batches = len(batches)
        if getattr(trainer.precision_plugin, "scaler", None):
            trainer.precision_plugin.scaler = GradScaler("cuda", init_scale=SCALE)
        trainer.fit(method, datamodule=module)
    return training
