"""Classifiers trained by SGD on augmented views: linear on a frozen backbone, or the whole network fine-tuned."""

import copy
import dataclasses
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from evaluation.features import FeatureSet, evaluation_mode
from evaluation.interfaces import TrainSubsetLoader
from evaluation.settings import (
    Note,
    TrainingLabels,
    balanced_rows,
    check_rates_can_be_chosen,
    fraction_suffix,
    label_fractions,
)
from evaluation.target import EvaluationTarget, RawPixels
from utils.arg_types import nonnegative_float, positive_float, positive_int
from utils.batch import Batch
from utils.distributed import mean_over_ranks, rank, rank_zero_print, world_size
from utils.errors import UserError
from utils.hardware import choose_precision
from utils.memory_layout import channels_last, convolutions_channels_last
from utils.optim import (
    FlagGroup,
    OptimizerConfig,
    ScheduleConfig,
    add_optimizer_flags,
    build_optimizer,
    build_scheduler,
    parameter_groups,
)
from utils.scores import Score
from utils.sync_batchnorm import synchronize_batch_norm

HELD_OUT = 0.1  # of each class, to choose a learning rate on where there are several
CHOSEN_ON = "a held-out tenth of the training images"


class Diverged(UserError):
    """The loss of every classifier that was trained together became infinite or NaN."""


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of `linear` and `finetune`.

    lrs: learning rates per 256 images, of which the best is taken. optimizer: its rate is replaced by one of them.
    label_fractions: shares of the labels of each class, each trained on by itself.
    decay_epochs, decay_factor: of the scheduler "step".
    """

    epochs: int
    lrs: tuple[float, ...]
    label_fractions: tuple[float, ...]
    optimizer: OptimizerConfig
    scheduler: str
    decay_epochs: tuple[int, ...]
    decay_factor: float

    def schedule(self, steps_per_epoch: int) -> ScheduleConfig:
        """The learning-rate schedule of all epochs."""
        return ScheduleConfig(
            name=self.scheduler,
            total_steps=self.epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            decay_epochs=self.decay_epochs,
            decay_factor=self.decay_factor,
        )


def add_classifier_flags(group: FlagGroup) -> None:
    """Flags of `linear` and `finetune`."""
    group.add_argument("--epochs", type=positive_int, default=100, help="passes over the training images")
    group.add_argument("--lr", type=positive_float, nargs="+", default=[0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
                       help="learning rates per 256 images of the global batch; of several the best on a held-out "
                       "tenth of the training images")  # fmt: skip
    group.add_argument("--weight_decay", type=nonnegative_float, default=0.0,
                       help="weight decay of weights; biases and norms have none")  # fmt: skip
    group.add_argument("--scheduler", choices=["cosine", "step", "none"], default="cosine",
                       help="learning-rate schedule; none keeps the rate constant")  # fmt: skip
    add_optimizer_flags(group)


def classifier_settings(flags: Namespace, labels: TrainingLabels, note: Note) -> ClassifierSettings:
    """The settings that the flags ask for; several rates where there is no image to choose on are refused."""
    fractions = label_fractions(flags, labels)
    check_rates_can_be_chosen(flags.lr, fractions, labels)
    return ClassifierSettings(
        epochs=flags.epochs,
        lrs=tuple(flags.lr),
        label_fractions=fractions,
        optimizer=OptimizerConfig(
            name=flags.optimizer,
            lr=flags.lr[0],
            weight_decay=flags.weight_decay,
            momentum=flags.momentum,
            trust_coefficient=flags.lars_eta,
            clip_trust_ratio=flags.lars_clip,
            adam_betas=tuple(flags.adam_betas),
        ),
        scheduler=flags.scheduler,
        decay_epochs=tuple(flags.lr_decay_steps),
        decay_factor=flags.lr_decay_factor,
    )


def linear(target: EvaluationTarget, settings: ClassifierSettings) -> list[Score]:
    """Top-1 accuracy of a linear classifier on the frozen backbone; raw pixels have no backbone and no score."""
    if isinstance(target.network, RawPixels):
        return []
    return [
        _score("linear_sgd", *linear_accuracy(target, settings, share), settings, share)
        for share in settings.label_fractions
    ]


def finetune(target: EvaluationTarget, settings: ClassifierSettings) -> list[Score]:
    """Top-1 accuracy of the whole network trained on the labels; raw pixels have no network and no score."""
    if isinstance(target.network, RawPixels):
        return []
    return [
        _score("finetune", *finetune_accuracy(target, settings, share), settings, share)
        for share in settings.label_fractions
    ]


def _score(name: str, accuracy: float, lr: float, settings: ClassifierSettings, label_fraction: float) -> Score:
    """The score under a key that says which share of the labels it took ("linear_sgd_1pct")."""
    several = len(settings.lrs) > 1
    chosen, chosen_on = ({"lr": lr}, CHOSEN_ON) if several else ({}, "")
    return Score(name + fraction_suffix(label_fraction), accuracy, chosen=chosen, chosen_on=chosen_on)


def split_rows(labels: Tensor, label_fraction: float, lrs: Sequence[float], seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows to choose a learning rate on (none where there is one rate only)."""
    rows = balanced_rows(labels, label_fraction, seed)
    if len(lrs) == 1:
        return rows, rows[:0]
    held_out = rows[balanced_rows(labels[rows], HELD_OUT, seed + 1)]
    rest = rows[~torch.isin(rows, held_out)]
    if len(labels[rest].unique()) < len(labels[rows].unique()):
        raise UserError(
            f"--lr {' '.join(f'{lr:g}' for lr in lrs)}: {len(rows)} labelled images are too few to hold some "
            f"of each class out and choose; name one --lr, or raise --label_fraction"
        )
    return rest, held_out


def train(
    batches: TrainSubsetLoader,
    modules: Sequence[nn.Module],
    lrs: Sequence[float],
    losses_of: Callable[[Batch], Tensor],
    settings: ClassifierSettings,
    title: str,
) -> list[bool]:
    """Minimize each of `losses_of(batch)`, (K,), over all epochs; return which were finite in every one.

    `modules[i]` is trained at `lrs[i]` per 256 images of a batch. No two losses share a parameter, so that one which is
    not finite leaves the others as they are. The answer is the same on all ranks. Raises Diverged once none is finite.
    """
    scale = batches.batch_size * world_size() / 256
    config = dataclasses.replace(settings.optimizer, lr=lrs[0])
    groups = [
        group
        for module, lr in zip(modules, lrs, strict=True)
        for group in parameter_groups(module, dataclasses.replace(config, lr=lr * scale))
    ]
    optimizer = build_optimizer(groups, config)
    scheduler = build_scheduler(optimizer, settings.schedule(len(batches)))
    total = torch.zeros(())
    for epoch in tqdm(range(settings.epochs), title, leave=False, disable=True if rank() else None):
        for batch in batches.epoch(epoch):
            losses = losses_of(batch)
            total = total.to(losses.device) + losses.detach()  # over all epochs: what is not finite stays so
            optimizer.zero_grad()
            losses.sum().backward()  # the gradient of each loss is its own, also where another one is NaN
            _average_gradients(modules)
            optimizer.step()
            scheduler.step()
        finite: list[bool] = mean_over_ranks(total).isfinite().tolist()  # once an epoch: it waits for the device
        if not any(finite):
            raise Diverged(f"{title}: the loss is {total.sum().item():g} in epoch {epoch + 1}; try a lower --lr")
    optimizer.zero_grad()  # the gradients are as large as the network, which stays
    return finite


def _average_gradients(modules: Sequence[nn.Module]) -> None:
    """Average over ranks, in one collective: each has seen its share of the batch."""
    if world_size() > 1:
        gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
        averages = mean_over_ranks(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
        for gradient, average in zip(gradients, averages, strict=True):
            gradient.copy_(average.view_as(gradient))


def compute_features(network: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Features (N, D) in float32 of images (N, 3, H, W).

    On a CUDA GPU as pretraining computes them by default: images in channels-last layout, and bf16 where it is native.
    """
    features: Tensor
    if device.type != "cuda":
        features = network(images)
    else:
        precision, _ = choose_precision(None, "cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
            features = network(channels_last(images))
    return features.float()


def new_head(width: int, classes: int, device: torch.device) -> nn.Linear:
    """A linear classifier with small random weights, equal for every learning rate."""
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(head.bias)
    return head.to(device)


@torch.no_grad()
def accuracy(head: nn.Module, features: FeatureSet) -> float:
    """Top-1 in per cent on the labelled rows."""
    features = features.labelled()
    predicted = torch.cat([head(x).argmax(dim=1) for x in features.x.split(8192)])
    return 100 * (predicted == features.y).double().mean().item()


def linear_accuracy(
    target: EvaluationTarget, settings: ClassifierSettings, label_fraction: float = 1.0
) -> tuple[float, float]:
    """Top-1 in per cent of the last epoch, and its learning rate: one head per rate on a frozen backbone.

    The backbone is in evaluation mode, and all heads see the same augmented views. Of several rates the one is taken
    that does best on a tenth of the training images, held out; none is chosen on the validation set. Raises UserError
    where the losses of all rates are not finite.
    """
    rows, held_out = split_rows(target.train_labels, label_fraction, settings.lrs, target.seed)
    width = target.feature_width
    heads = nn.ModuleList(new_head(width, target.classes, target.device) for _ in settings.lrs)

    def losses_of(batch: Batch) -> Tensor:
        with torch.no_grad():
            features = compute_features(target.network, batch.views[0], target.device)
        return torch.stack([F.cross_entropy(head(features), batch.labels) for head in heads])

    with evaluation_mode(target.network):
        convolutions_channels_last(target.network, target.device.type)
        batches = target.train_subset_loader(rows)
        finite = train(batches, list(heads), settings.lrs, losses_of, settings, f"{target.title}, linear")
    heads.cpu()
    for lr, is_finite in zip(settings.lrs, finite, strict=True):
        if not is_finite:
            _note_left_out(f"{target.title}, linear", lr)
    best = 0
    if len(held_out):
        features = target.train
        check = FeatureSet(features.x[held_out], features.y[held_out])
        scores = [accuracy(head, check) if fine else -math.inf for head, fine in zip(heads, finite, strict=True)]
        best = _argmax(scores)
    return accuracy(heads[best], target.labelled_val), settings.lrs[best]


def finetune_accuracy(
    target: EvaluationTarget, settings: ClassifierSettings, label_fraction: float = 1.0
) -> tuple[float, float]:
    """Top-1 in per cent of the last epoch, and its learning rate: a copy of the whole network trained on the labels.

    Raises UserError where the losses of all rates are not finite.
    """
    rows, held_out = split_rows(target.train_labels, label_fraction, settings.lrs, target.seed)
    best: _Candidate | None = None
    for lr in settings.lrs:
        needed = best is None and lr == settings.lrs[-1]
        # No name holds a candidate that is not the best: the next one needs the memory.
        best = _better(best, _candidate(target, settings, rows, held_out, lr, needed))
    assert best is not None
    return accuracy(best.head, target.extract("val", best.network)), best.lr


@dataclass(frozen=True)
class _Candidate:
    """A fine-tuned network, its head on CPU, its rate and its accuracy on held-out images (0 where there are none)."""

    network: nn.Module
    head: nn.Linear
    lr: float
    held_out_accuracy: float


def _candidate(
    target: EvaluationTarget, settings: ClassifierSettings, rows: Tensor, held_out: Tensor, lr: float, needed: bool
) -> _Candidate | None:
    """The network fine-tuned at a rate; where it diverges None with a note, or an error if it is needed."""
    try:
        network, head = _finetune(target, settings, rows, lr)
    except Diverged:
        if needed:
            raise
        _note_left_out(f"{target.title}, finetune", lr)
        return None
    if not len(held_out):
        return _Candidate(network, head, lr, 0.0)
    features = target.extract("train", network)
    return _Candidate(network, head, lr, accuracy(head, FeatureSet(features.x[held_out], features.y[held_out])))


def _better(best: _Candidate | None, candidate: _Candidate | None) -> _Candidate | None:
    """The one with the higher accuracy on held-out images; of equal ones the first."""
    if best is None or candidate is None:
        return best or candidate
    return candidate if candidate.held_out_accuracy > best.held_out_accuracy else best


def _finetune(
    target: EvaluationTarget, settings: ClassifierSettings, rows: Tensor, lr: float
) -> tuple[nn.Module, nn.Linear]:
    """A copy of the network and a head on CPU, trained together at one learning rate."""
    network = copy.deepcopy(target.network).train()
    convolutions_channels_last(network, target.device.type)
    if world_size() > 1:
        synchronize_batch_norm(network, target.device.type == "cuda")
    head = new_head(target.feature_width, target.classes, target.device)

    def losses_of(batch: Batch) -> Tensor:
        return F.cross_entropy(head(compute_features(network, batch.views[0], target.device)), batch.labels)[None]

    title = f"{target.title}, finetune {lr:g}"
    train(target.train_subset_loader(rows), [network, head], [lr, lr], losses_of, settings, title)
    return network, head.cpu()


def _note_left_out(title: str, lr: float) -> None:
    rank_zero_print(f"  note: {title}: the loss at --lr {lr:g} is not finite; the rate is left out")


def _argmax(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
