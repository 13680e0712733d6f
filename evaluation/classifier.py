"""Classifiers trained on augmented views: linear on a frozen backbone, or the whole network fine-tuned."""

import copy
import math
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from evaluation.features import FeatureSet, extract
from utils.distributed import mean_over_ranks, rank, world_size
from utils.errors import UserError
from utils.optim import build_optimizer, build_scheduler
from utils.sync_batchnorm import synchronize_batch_norm

HELD_OUT = 0.1  # of each class, to choose a learning rate on where there are several


def balanced_rows(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted positions of `fraction` of each class, at least one image of each; unlabelled images are left out.

    The same seed gives the same images, and a larger fraction contains the smaller one.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for label in labels[labels >= 0].unique():
        mine = order[labels[order] == label]
        chosen.append(mine[: max(1, round(fraction * len(mine)))])
    return torch.cat(chosen).sort().values


def split_rows(labels: Tensor, args: Namespace) -> tuple[Tensor, Tensor]:
    """(rows to fit on, rows to choose a learning rate on; none where there is but one to choose)."""
    rows = balanced_rows(labels, args.label_fraction, args.seed)
    if len(args.lr) == 1:
        return rows, rows[:0]
    held = rows[balanced_rows(labels[rows], HELD_OUT, args.seed + 1)]
    rest = rows[~torch.isin(rows, held)]
    if len(labels[rest].unique()) < len(labels[rows].unique()):
        raise UserError(
            f"--lr {' '.join(f'{lr:g}' for lr in args.lr)}: {len(rows)} labelled images are too few to hold some "
            f"of each class out and choose; name one --lr, or raise --label_fraction"
        )
    return rest, held


def train(
    batches: Any, parts: list[nn.Module], lrs: list[float], loss_of: Callable, args: Namespace, title: str
) -> None:
    """Minimize `loss_of(batch)` over --epochs; `parts[i]` learns at `lrs[i]` per 256 images of a batch.

    batches: len() steps an epoch, `batch_size` images each, `epoch(e)` yields them.
    """
    groups = [
        {"params": ps, "name": kind, "lr": lr * batches.batch_size * world_size() / 256, "scheduled": True,
         "always_adapt": kind == "w", "weight_decay": args.weight_decay if kind == "w" else 0.0}
        for part, lr in zip(parts, lrs, strict=True)
        for kind, ps in (("w", [p for p in part.parameters() if p.ndim > 1]),
                         ("b", [p for p in part.parameters() if p.ndim <= 1])) if ps
    ]  # fmt: skip
    plan = Namespace(**vars(args) | {"scaled_lr": lrs[0], "warmup_steps": 0, "total_steps": args.epochs * len(batches),
                                     "optimizer_steps_per_epoch": len(batches)})  # fmt: skip
    optimizer = build_optimizer(groups, plan)
    schedule = build_scheduler(optimizer, plan)
    for epoch in tqdm(range(args.epochs), title, leave=False, disable=True if rank() else None):
        total: Tensor | float = 0.0
        for batch in batches.epoch(epoch):
            loss = loss_of(batch)
            total = total + loss.detach()  # looked at once an epoch: to look at a number waits for the device
            optimizer.zero_grad()
            loss.backward()
            _average_gradients(parts)
            optimizer.step()
            schedule.step()
        if not math.isfinite(total):
            raise UserError(f"{title}: the loss is {float(total):g} in epoch {epoch + 1}; lower --lr")


def _average_gradients(parts: list[nn.Module]) -> None:
    """Each rank has seen its share of the batch."""
    if world_size() > 1:
        for p in (p for part in parts for p in part.parameters()):
            if p.grad is not None:
                p.grad = mean_over_ranks(p.grad)


def new_head(width: int, classes: int, device: torch.device) -> nn.Linear:
    """A classifier that starts from small weights, the same for every learning rate."""
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(head.bias)
    return head.to(device)


@torch.no_grad()
def accuracy(head: nn.Module, features: FeatureSet) -> float:
    """Top-1 in per cent on the labelled rows."""
    features = features.labelled()
    guess = torch.cat([head(x).argmax(dim=1) for x in features.x.split(8192)])
    return 100 * (guess == features.y).double().mean().item()


def linear_accuracy(subject: Any) -> tuple[float, float]:
    """(top-1 in per cent of the last epoch, its learning rate): one head per --lr on a frozen backbone in eval mode.

    All heads see the same augmented views. With several, the one is taken that does best on a tenth of the training
    images, held out; none is chosen on the validation set.
    """
    args, clean = subject.args, subject.train
    rows, held = split_rows(clean.y, args)
    heads = nn.ModuleList(new_head(clean.x.shape[1], subject.classes, subject.device) for _ in args.lr)
    subject.network.eval()

    def loss_of(batch: Any) -> Tensor:
        with torch.no_grad():
            f = subject.network(batch.views[0]).float()
        return torch.stack([F.cross_entropy(head(f), batch.labels) for head in heads]).sum()

    train(subject.train_subset_loader(rows), list(heads), args.lr, loss_of, args, f"{subject.title}, linear")
    heads.cpu()
    best = _best([accuracy(head, FeatureSet(clean.x[held], clean.y[held])) for head in heads] if len(held) else [0.0])
    return accuracy(heads[best], subject.val), args.lr[best]


def finetune_accuracy(subject: Any) -> tuple[float, float]:
    """(top-1 in per cent of the last epoch, its learning rate): a copy of the whole network trained on the labels."""
    args, y = subject.args, subject.train.y
    rows, held = split_rows(y, args)
    tried = []
    for lr in args.lr:
        network = copy.deepcopy(subject.network).train()
        if world_size() > 1:
            synchronize_batch_norm(network, subject.device.type == "cuda")
        head = new_head(subject.train.x.shape[1], subject.classes, subject.device)

        def loss_of(batch: Any, network: nn.Module = network, head: nn.Module = head) -> Tensor:
            return F.cross_entropy(head(network(batch.views[0]).float()), batch.labels)

        train(
            subject.train_subset_loader(rows),
            [network, head],
            [lr, lr],
            loss_of,
            args,
            f"{subject.title}, finetune {lr:g}",
        )
        head.cpu()
        held_out = 0.0
        if len(held):
            clean = extract(network, subject.data.eval_dataloader("train", subject.device))
            held_out = accuracy(head, FeatureSet(clean.x[held], clean.y[held]))
        tried.append((held_out, network, head))
    best = _best([held_out for held_out, _, _ in tried])
    _, network, head = tried[best]
    return accuracy(head, extract(network, subject.data.eval_dataloader("val", subject.device))), args.lr[best]


def _best(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
