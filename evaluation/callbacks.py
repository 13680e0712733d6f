"""What judges a run while it trains and when it ends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from evaluation import pictures
from evaluation.features import FeatureSet, extract
from evaluation.knn import knn_accuracy
from utils.files import last_value, read_metrics
from utils.plan import Plan

LogPictures = Callable[[Sequence[Logger], Sequence[Path]], None]
DRAWN = ("probe_acc", "val_probe_acc", "knn_20", "knn_200", "nn_label_acc")
LARGEST = 100_000  # training images above which the pictures at the end are left to main_linear.py


class OnlineKNN(Callback):
    """kNN on clean features every few epochs and after the last; needs labels and a validation set."""

    def __init__(self, every: int, ks: Sequence[int], classes: int, total_epochs: int):
        self.every, self.ks, self.classes, self.total_epochs = every, list(ks), classes, total_epochs
        self.train: FeatureSet | None = None
        self.val: FeatureSet | None = None
        self.step = -1  # the optimizer step that the features belong to

    def extract(self, trainer: Trainer, pl_module: Any) -> None:
        """The clean features of both splits as the backbone is now; nothing to do when they are still fresh."""
        if self.step == trainer.global_step:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            self.train = extract(pl_module, data.eval_dataloader("train", pl_module.device))
            if data.data.val is not None:
                self.val = extract(pl_module, data.eval_dataloader("val", pl_module.device))
        self.step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if not self.ks or (epoch % self.every and epoch != self.total_epochs):
            return
        self.extract(trainer, pl_module)
        assert self.train is not None
        assert self.val is not None
        accuracy = knn_accuracy(self.train, self.val, self.ks, self.classes, pl_module.device)
        pl_module.log_dict({f"knn_{k}": a for k, a in accuracy.items()}, on_step=False, on_epoch=True)


class Pictures(Callback):
    """Curves, neighbours and embedding into the run folder (and onto the dashboard) when training ends."""

    def __init__(self, folder: Path, knn: OnlineKNN, seed: int, log_pictures: LogPictures):
        self.folder, self.knn, self.seed, self.log_pictures = folder, knn, seed, log_pictures
        self.drawn: list[Path] = []

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        small = len(data.data.train) <= LARGEST
        if small:
            self.knn.extract(trainer, pl_module)  # on every rank
        if not trainer.is_global_zero:
            return
        self._curves()
        if small:
            self._neighbours(data.data)
            self._embedding(data.data)
        self.log_pictures(trainer.loggers, self.drawn)

    def _path(self, name: str) -> Path:
        self.drawn.append(self.folder / f"{name}.png")
        return self.drawn[-1]

    def _curves(self) -> None:
        rows = read_metrics(self.folder / "metrics.csv")
        columns = {
            name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            for name in ("loss", *DRAWN)
            if last_value(rows, name) is not None
        }
        if columns:
            pictures.curves(self._path("curves"), columns)

    def _neighbours(self, data: Any) -> None:
        assert self.knn.train is not None
        if len(self.knn.train.x) > 1:
            pictures.neighbours(self._path("neighbours"), self.knn.train, self.knn.val, data, self.seed)

    def _embedding(self, data: Any) -> None:
        features = self.knn.val or self.knn.train
        assert features is not None
        if len(features.x) >= 4:
            pictures.embedding(self._path("embedding"), features, data.train.classes, self.seed)


def evaluation_callbacks(plan: Plan, folder: Path, has_val: bool, log_pictures: LogPictures) -> list[Callback]:
    """The evaluations of a run while it trains; without labels or a validation set there is no kNN, only pictures.

    log_pictures: shows pictures on the dashboards behind some loggers.
    """
    classes = plan.training_set.num_classes
    ks = plan.logging.knn_k if classes and has_val and plan.logging.knn_every else ()
    knn = OnlineKNN(plan.logging.knn_every, ks, classes, plan.schedule.total_epochs)
    return [knn, Pictures(folder, knn, plan.seed, log_pictures)]
