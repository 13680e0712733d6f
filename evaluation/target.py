"""The network that an evaluation measures, and the data set that it is measured on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from evaluation.feature_files import fingerprint
from evaluation.features import FeatureSet, evaluation_mode, extract
from evaluation.interfaces import AugmentedData, EvaluationData, TrainSubsetLoader
from utils.distributed import rank_zero_print
from utils.scores import ResultRow, network_label, slug

PAIRS = 2048  # training images whose two views are compared


class RawPixels(nn.Module):
    """The pixels themselves as features: the baseline that every backbone has to beat."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@dataclass(frozen=True)
class NetworkInfo:
    """Facts about a network. title: of its row in the table. layer: which of the network's outputs are the features (a
    block, the last blocks, a pooling), None for its own. weights: the file that it was loaded from. default_output_dir:
    directory for files made of these weights. seed, run: of the pretraining, and the name of its folder or file.
    """

    title: str
    backbone: str
    method: str = ""
    pretrained_on: str = ""
    layer: str | None = None
    weights: str = ""
    default_output_dir: Path = Path()
    seed: str = ""
    run: str = ""

    @property
    def label(self) -> str:
        """The title with the method, the seed and the run that it does not name."""
        return network_label(self.title, self.method, self.seed, self.run)


Networks = list[tuple[NetworkInfo, nn.Module]]  # the rows of a table
RAW_PIXELS = NetworkInfo("raw pixels", "raw pixels")


class PretrainedWeights(Protocol):
    """A file of weights: its path, its name in a table, and what is known of its pretraining."""

    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def default_output_dir(self, output: str) -> Path: ...


def pretrained_info(
    backbone: str, layer: str | None, dataset: str, weights: PretrainedWeights, output: str, several: bool
) -> NetworkInfo:
    """Facts about a pretrained network; its title names the data set of the pretraining where that is not `dataset`.

    output: parent directory of run folders. several: whether the table has other pretrained networks beside this one.
    """
    method, pretrained_on = weights.metadata.get("method", ""), weights.metadata.get("dataset", "")
    title = f"{backbone}, {weights.name if several else method or 'pretrained'}"
    if pretrained_on not in ("", dataset):
        title += f" on {pretrained_on}"
        rank_zero_print(f"  note: {weights.path} was pretrained on {pretrained_on} and is evaluated on {dataset}")
    default_output_dir = weights.default_output_dir(output)
    return NetworkInfo(title, backbone, method, pretrained_on, layer, str(weights.path), default_output_dir,
                       weights.metadata.get("seed", ""), weights.name)  # fmt: skip


class EvaluationTarget:
    """A row of the table: a network on its device, and the data set that it is evaluated on.

    dataset: name of the data set. data: its data module, with two augmented views. crops: the same images as one
    cropped view each, for training classifiers. folder: where files go. seed: of every random choice.
    Features are extracted when they are first asked for, and once.
    """

    def __init__(
        self,
        network: nn.Module,
        info: NetworkInfo,
        dataset: str,
        data: EvaluationData,
        crops: AugmentedData,
        device: torch.device,
        folder: Path,
        seed: int = 0,
    ):
        self.network, self.info, self.title = network.to(device), info, info.title
        self.dataset, self.data, self.crops, self.classes = dataset, data, crops, data.data.classes
        self.device, self.folder, self.seed = device, folder, seed

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the network's weights and buffers."""
        return fingerprint(self.network)

    @property
    def file_name(self) -> str:
        """The title as part of a file name."""
        return slug(self.title)

    def extract(self, split: str, network: nn.Module | None = None) -> FeatureSet:
        """Features of the evaluation views of a split, by the network or by another one made from it."""
        loader = self.data.eval_dataloader(split, self.device)
        return extract(network or self.network, loader, f"{self.title}, {split}", self.folder)

    @cached_property
    def train(self) -> FeatureSet:
        """Features of the training images."""
        return self.extract("train")

    @cached_property
    def val(self) -> FeatureSet | None:
        """Features of the validation images; None where the data set has none."""
        return self.extract("val") if "val" in self.data.data.splits() else None

    @property
    def labelled_train(self) -> FeatureSet:
        """Features of the training images whose label is known; y is (N, C) where they have several."""
        return self._labelled("train", self.train)

    @property
    def labelled_val(self) -> FeatureSet:
        """Features of the validation images whose label is known; y is (N, C) where they have several."""
        assert self.val is not None, "evaluations that need validation images are refused where there are none"
        return self._labelled("val", self.val)

    def _labelled(self, split: str, features: FeatureSet) -> FeatureSet:
        sets = self.data.data.label_sets(split)
        return (features if sets is None else FeatureSet(features.x, sets)).labelled()

    @property
    def train_labels(self) -> Tensor:
        """(N,) labels of the training images, -1 unknown; no image is read for them."""
        return self.data.data.train.labels

    @cached_property
    @torch.no_grad()
    def feature_width(self) -> int:
        """Coordinates of a feature, from one blank image."""
        with evaluation_mode(self.network):
            blank = torch.zeros(1, 3, self.data.size, self.data.size, device=self.device)
            return int(self.network(blank).shape[1])

    def train_subset_loader(self, rows: Tensor) -> TrainSubsetLoader:
        """Epochs of augmented batches of some training images."""
        return self.crops.train_subset_loader(rows.numpy(), self.device)

    @torch.no_grad()
    def two_views(self) -> tuple[Tensor, Tensor]:
        """Features (M, D) of two augmented views of the same training images, evenly spaced over the data set."""
        n = len(self.data.data.train)
        rows = torch.linspace(0, n - 1, min(n, PAIRS)).long().tolist()
        with evaluation_mode(self.network):
            views = [
                [self.network(v).float().cpu() for v in batch.views[:2]]
                for batch in self.data.augmented_loader(rows, self.device)
            ]
        return torch.cat([a for a, _ in views]), torch.cat([b for _, b in views])

    def result_row(self) -> ResultRow:
        """The row of this network, without scores yet."""
        info = self.info
        return ResultRow(self.title, info.backbone, info.method, info.pretrained_on, seed=info.seed, run=info.run)
