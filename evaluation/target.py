"""A network and the data set that it is evaluated on."""

from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.feature_files import fingerprint
from evaluation.features import FeatureSet, extract

PAIRS = 2048  # training images whose two views are compared


class RawPixels(nn.Module):
    """The images themselves as features: what every backbone has to beat."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class EvaluationTarget:
    """A row of the table: a network on its device, and the data set that it is judged on.

    data: gives `eval_dataloader(split, device)`, clean batches, and `augmented(rows, device)`, batches of two views of
    training images. crops: gives `training(rows, device)`, epochs of one cropped view each.
    folder: where files go. FeatureSet are extracted when they are first asked for, and once.
    """

    def __init__(
        self, title: str, network: nn.Module, data: Any, crops: Any, device: torch.device, args: Namespace, folder: Path
    ):
        self.title, self.network, self.data, self.crops = title, network.to(device), data, crops
        self.device, self.args, self.folder, self.classes = device, args, folder, data.data.classes

    @cached_property
    def fingerprint(self) -> str:
        """Of the network's weights."""
        return fingerprint(self.network)

    @property
    def short(self) -> str:
        """The title as part of a file name."""
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in self.title)

    def _clean(self, split: str) -> FeatureSet:
        return extract(self.network, self.data.eval_dataloader(split, self.device), f"{self.title}, {split}")

    @cached_property
    def train(self) -> FeatureSet:
        return self._clean("train")

    @cached_property
    def val(self) -> FeatureSet | None:
        """None where the data set has no held-out images."""
        return self._clean("val") if "val" in self.data.data.splits() else None

    @property
    def labelled_val(self) -> FeatureSet:
        assert self.val is not None, "`check_and_fill_defaults` refuses what needs labels where there are none"
        return self.val.labelled()

    def train_subset_loader(self, rows: Tensor) -> Any:
        """Epochs of augmented batches of some training images."""
        return self.crops.train_subset_loader(rows.numpy(), self.device)

    @torch.no_grad()
    def pair(self) -> tuple[Tensor, Tensor]:
        """Features (M, D) of two augmented views of the same training images, evenly spread over the data set."""
        n = len(self.data.data.train)
        rows = torch.linspace(0, n - 1, min(n, PAIRS)).long().tolist()
        self.network.eval()
        views = [
            [self.network(v).float().cpu() for v in b.views[:2]] for b in self.data.augmented_loader(rows, self.device)
        ]
        return torch.cat([a for a, _ in views]), torch.cat([b for _, b in views])
