"""Evaluations of a run while it trains, and pictures when it ends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger

from evaluation import pictures
from evaluation.features import FeatureSet, extract
from evaluation.interfaces import Data, EvaluationData
from evaluation.knn import knn_accuracy
from utils.distributed import rank_zero_print
from utils.errors import UserError
from utils.files import last_value, read_metrics
from utils.plan import Plan

LogPictures = Callable[[Sequence[Logger], Sequence[Path]], None]
CURVES = ("loss", "probe_acc", "val_probe_acc", "knn_20", "knn_200", "nn_label_acc")
MOST_IMAGES = 100_000  # training images above which no features are extracted for pictures alone


def _data_module(trainer: Trainer) -> EvaluationData:
    return cast(EvaluationData, trainer.datamodule)  # type: ignore[attr-defined]


class FeatureCache:
    """Features of both splits by the backbone as it is now; callbacks share them, one extraction per optimizer step."""

    def __init__(self) -> None:
        self._step = -1  # the optimizer step that the features belong to
        self._features: dict[str, FeatureSet] = {}

    def get(self, trainer: Trainer, module: LightningModule) -> tuple[FeatureSet, FeatureSet | None]:
        """Features of the training and of the validation images; every rank must call."""
        if self._step != trainer.global_step:
            data = _data_module(trainer)
            with trainer.precision_plugin.forward_context():
                self._features = {
                    split: extract(module, data.eval_dataloader(split, module.device)) for split in data.data.splits()
                }
            self._step = trainer.global_step
        return self._features["train"], self._features.get("val")


class OnlineKNN(Callback):
    """kNN on features of evaluation views, every few epochs and after the last; needs labels and validation images."""

    def __init__(self, cache: FeatureCache, every: int, ks: Sequence[int], classes: int, total_epochs: int):
        self.cache, self.every, self.ks, self.classes, self.total_epochs = cache, every, list(ks), classes, total_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every and epoch != self.total_epochs:
            return
        train, val = self.cache.get(trainer, pl_module)
        assert val is not None
        accuracy = knn_accuracy(train, val, self.ks, self.classes, pl_module.device)
        pl_module.log_dict({f"knn_{k}": a for k, a in accuracy.items()}, on_step=False, on_epoch=True)


class Pictures(Callback):
    """Curves, neighbours and embedding as PNG files in the run folder and on the dashboards, when training ends."""

    def __init__(self, cache: FeatureCache, folder: Path, seed: int, log_pictures: LogPictures):
        self.cache, self.folder, self.seed, self.log_pictures = cache, folder, seed, log_pictures

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = _data_module(trainer).data
        # On every rank: the extraction is shared.
        features = self.cache.get(trainer, pl_module) if len(data.train) <= MOST_IMAGES else None
        if trainer.is_global_zero:
            paths = self._curves()
            if features is not None:
                paths += self._feature_pictures(*features, data)
            self.log_pictures(trainer.loggers, paths)

    def _curves(self) -> list[Path]:
        rows = read_metrics(self.folder / "metrics.csv")
        columns = {
            name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            for name in CURVES
            if last_value(rows, name) is not None
        }
        return self._draw("curves.png", pictures.curves, columns) if columns else []

    def _feature_pictures(self, train: FeatureSet, val: FeatureSet | None, data: Data) -> list[Path]:
        paths = []
        if len(train.x) > 1:
            paths += self._draw("neighbours.png", pictures.neighbours, train, val, data, self.seed)
        shown = val or train
        if len(shown.x) >= 4:
            paths += self._draw("embedding.png", pictures.embedding, shown, data.train.classes, self.seed)
        return paths

    def _draw(self, name: str, draw: Callable[..., None], *content: Any) -> list[Path]:
        """The path of a picture, or none where it cannot be written: the run goes on without it."""
        try:
            draw(self.folder / name, *content)
        except UserError as e:
            rank_zero_print(f"  warning: {e}; the run goes on without this picture")
            return []
        return [self.folder / name]


def evaluation_callbacks(plan: Plan, folder: Path, has_val: bool, log_pictures: LogPictures) -> list[Callback]:
    """The evaluations of a run while it trains; without labels or validation images there is no kNN, only pictures.

    log_pictures: shows pictures on the dashboards behind some loggers.
    """
    cache = FeatureCache()
    callbacks: list[Callback] = []
    if plan.training_set.num_classes and has_val and plan.logging.knn_every and plan.logging.knn_k:
        logging = plan.logging
        classes = plan.training_set.num_classes
        callbacks.append(OnlineKNN(cache, logging.knn_every, logging.knn_k, classes, plan.schedule.total_epochs))
    return [*callbacks, Pictures(cache, folder, plan.seed, log_pictures)]
