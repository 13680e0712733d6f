"""Evaluations of a run while it trains, and pictures when it ends."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger
from torch import nn

from evaluation import pictures
from evaluation.captions import add_captions
from evaluation.features import FeatureSet, extract
from evaluation.interfaces import Data, EvaluationData
from evaluation.knn import knn_accuracy
from evaluation.quality import WIDEST, quality_of
from evaluation.report_data import first_images, views_grid, write_grid
from utils.batch import Batch
from utils.distributed import (
    ProcessError,
    broadcast_str,
    is_communication_error,
    raise_together,
    rank_zero_print,
    reason_of,
    run_on_first_rank,
)
from utils.errors import UserError
from utils.files import last_value, read_metrics
from utils.plan import Plan, is_evaluated, is_evaluation
from utils.vision_transformer import has_class_attention, require_vision_transformer

T = TypeVar("T")
LogPictures = Callable[[Sequence[Logger], Sequence[Path], int], None]  # the last one is the optimizer step

CURVES = ("loss", "probe_acc", "val_probe_acc", "knn_20", "knn_200", "nn_label_acc")
MOST_IMAGES = 100_000  # training images above which no features are extracted for pictures or quality alone
QUALITY = "quality/rankme"


@runtime_checkable
class EvaluatedModule(Protocol):
    """A module that is evaluated by one of its networks."""

    def eval_backbone(self) -> nn.Module: ...


def _data_module(trainer: Trainer) -> EvaluationData:
    return cast(EvaluationData, trainer.datamodule)  # type: ignore[attr-defined]


class FeatureCache:
    """Features of both splits by the backbone as it is now; callbacks share them, one extraction per optimizer step."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder  # for the copy that the ranks of a machine share
        self._step = -1  # the optimizer step that the features belong to
        self._features: dict[str, FeatureSet] = {}

    def get(self, trainer: Trainer, module: LightningModule) -> tuple[FeatureSet, FeatureSet | None]:
        """Features of the training and of the validation images; every rank must call."""
        if self._step != trainer.global_step:
            data = _data_module(trainer)
            self._features, self._step = {}, -1  # first, so that old and new ones are never in memory together
            with trainer.precision_plugin.forward_context():
                self._features = {
                    split: extract(module, data.eval_dataloader(split, module.device), folder=self.folder)
                    for split in data.data.splits()
                }
            self._step = trainer.global_step
        return self._features["train"], self._features.get("val")

    def has(self, trainer: Trainer) -> bool:
        """Whether the features of this step are here already, on every rank alike."""
        return self._step == trainer.global_step


def attempt(what: str, evaluation: Callable[[], T], also_user_errors: bool = False) -> T | None:
    """What an evaluation returns; None, and one line, where it fails: training goes on. Every rank must call.

    All ranks go on alike, also where it fails on one of them. A UserError ends the run (but with also_user_errors:
    that of a full disk is one), as does the loss of another process.
    """
    result, error = None, None
    try:
        result = evaluation()
    except Exception as e:
        error = e
    try:
        raise_together(error)
    except Exception as e:
        user_error = getattr(e, "code", 1) == UserError.code
        if (user_error and not also_user_errors) or is_communication_error(e):
            raise
        whose = f" on process {e.rank}" if isinstance(e, ProcessError) else ""
        rank_zero_print(f"  warning: {what} failed{whose}: {reason_of(e)}; the run goes on")
        return None
    return result


class OnlineEvaluation(Callback):
    """Quality without labels, and kNN where it can be, of evaluation views, every few epochs and after the last.

    ks: numbers of neighbours; none without labels or validation images. The epoch is saved before it is evaluated.
    folder: with metrics.csv.
    """

    def __init__(
        self, cache: FeatureCache, every: int, ks: Sequence[int], classes: int, total_epochs: int, folder: Path
    ):
        self.cache, self.every, self.ks, self.classes, self.total_epochs = cache, every, list(ks), classes, total_epochs
        self.folder = folder
        self.what = "kNN" if ks else "quality"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the epoch with which a resumed run goes on, where the run was cut off between saving and that."""
        epoch, step = trainer.current_epoch, trainer.global_step - 1
        within_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if epoch and not within_epoch and epoch % self.every == 0 and broadcast_str(self._evaluated(step)) == "no":
            numbers = attempt(f"{self.what} of epoch {epoch}", lambda: self._numbers(trainer, pl_module))
            row: dict[str, float] = {"epoch": epoch - 1}
            for name, value in (numbers or {}).items():
                row[name] = torch.tensor(value).item()  # in float32, as Lightning logs those of other epochs
            for logger in trainer.loggers if numbers else []:
                logger.log_metrics(row, step)  # type: ignore[arg-type]  # Lightning's type is too narrow

    def _evaluated(self, step: int) -> str:
        rows = [row for row in read_metrics(self.folder / "metrics.csv") if int(row["step"]) == step]
        return "no" if last_value(rows, f"knn_{self.ks[0]}" if self.ks else QUALITY) is None else "yes"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not is_evaluated(epoch, self.every, self.total_epochs):
            return
        numbers = attempt(f"{self.what} of epoch {epoch}", lambda: self._numbers(trainer, pl_module))
        if numbers is not None:
            pl_module.log_dict(numbers, on_step=False, on_epoch=True)
            return
        for name in [name for name in trainer.logged_metrics if is_evaluation(name)]:
            trainer.logged_metrics.pop(name)  # Lightning would show the number of an earlier epoch

    def _numbers(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        train, val = self.cache.get(trainer, pl_module)
        numbers = {}
        if self.ks:
            assert val is not None
            accuracy = knn_accuracy(train, val, self.ks, self.classes, pl_module.device, shared=True)
            numbers = {f"knn_{k}": a for k, a in accuracy.items()}
        x = (val or train).x
        with contextlib.suppress(UserError):  # features that are not finite have none; another check ends the run
            numbers |= quality_of(x) if x.shape[1] <= WIDEST else {}
        return numbers


class Pictures(Callback):
    """Curves, neighbours and embedding as PNG files in the run folder and on the dashboards, when training ends.

    every: epochs between two times that they are drawn before, 0 for none; total_epochs: of the run.
    """

    def __init__(
        self,
        cache: FeatureCache,
        folder: Path,
        seed: int,
        log_pictures: LogPictures,
        every: int = 0,
        total_epochs: int = 0,
    ):
        self.cache, self.folder, self.seed, self.log_pictures = cache, folder, seed, log_pictures
        self.every, self.total_epochs = every, total_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if is_evaluated(epoch, self.every, self.total_epochs) and epoch < self.total_epochs:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw; a picture that fails costs a line, and not the end of the run."""
        data = _data_module(trainer).data
        drawings: list[Callable[[], Path | None]] = [self._curves]
        if len(data.train) <= MOST_IMAGES:  # the extraction is shared by all ranks
            features = attempt("the extraction of features", lambda: self.cache.get(trainer, pl_module))
            drawings += self._of_features(*features, data) if features else []
        network = pl_module.eval_backbone() if isinstance(pl_module, EvaluatedModule) else None
        if network is not None and has_class_attention(network):
            drawings.append(lambda: self._attention(trainer, network, pl_module.device))
        paths = [
            attempt("a picture", lambda draw=draw: run_on_first_rank(draw), also_user_errors=True)  # type: ignore[misc]
            for draw in drawings
        ]
        if trainer.is_global_zero:
            self.log_pictures(trainer.loggers, [path for path in paths if path], max(0, trainer.global_step - 1))

    def _curves(self) -> Path | None:
        rows = read_metrics(self.folder / "metrics.csv")
        columns = {
            name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            for name in CURVES
            if last_value(rows, name) is not None
        }
        if not columns:
            return None
        path = self.folder / "curves.png"
        pictures.curves(path, columns)
        return path

    def _of_features(self, train: FeatureSet, val: FeatureSet | None, data: Data) -> list[Callable[[], Path]]:
        def neighbours() -> Path:
            path = self.folder / "neighbours.png"
            pictures.neighbours(path, train, val, data, self.seed)
            return path

        def embedding() -> Path:
            path = self.folder / "embedding.png"
            pictures.embedding(path, shown, data.train.classes, self.seed, "tsne", images)
            return path

        shown, images = (train, data.train) if val is None or data.val is None else (val, data.val)
        return [neighbours] * (len(train.x) > 1) + [embedding] * (len(shown.x) >= 4)

    def _attention(self, trainer: Trainer, network: nn.Module, device: torch.device) -> Path:
        path = self.folder / "attention.png"
        transformer = require_vision_transformer(network, "a picture of attention")
        pictures.attention(path, transformer, _data_module(trainer), device, self.seed)
        return path


class ReportImages(Callback):
    """Data of the run's report while it trains: views of the first batch, and neighbours at each evaluation.

    every: epochs between two evaluations. A step only keeps a copy of its first images, and only the first one.
    """

    def __init__(self, cache: FeatureCache, folder: Path, seed: int, every: int, total_epochs: int):
        self.cache, self.folder, self.seed, self.every, self.total_epochs = cache, folder, seed, every, total_epochs
        self._first: tuple[int, Batch] | None = None  # a step, and the first images of its batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self._first is None:
            self._first = trainer.global_step, first_images(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_evaluated(trainer.current_epoch + 1, self.every, self.total_epochs):
            attempt("the report's data", lambda: run_on_first_rank(lambda: self._write(trainer)), also_user_errors=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        attempt("the report's data", lambda: run_on_first_rank(lambda: self._write_views(trainer)), True)

    def _write(self, trainer: Trainer) -> None:
        self._write_views(trainer)
        data, epoch = _data_module(trainer).data, trainer.current_epoch + 1
        last = epoch == self.total_epochs and len(data.train) <= MOST_IMAGES  # then Pictures draws them
        if self.cache.has(trainer) and not last:
            train, val = self.cache.get(trainer, trainer.lightning_module)
            grid = replace(pictures.neighbour_cells(train, val, data, self.seed), note=f"after epoch {epoch}")
            write_grid(self.folder / "neighbours.json", grid)

    def _write_views(self, trainer: Trainer) -> None:
        path = self.folder / "views.json"
        if self._first is not None and not path.exists():
            step, batch = self._first
            write_grid(path, views_grid(batch, _data_module(trainer).data, step))


def evaluation_callbacks(plan: Plan, folder: Path, has_val: bool, log_pictures: LogPictures) -> list[Callback]:
    """The evaluations of a run while it trains; without labels or validation images no kNN, but quality and pictures.

    log_pictures: shows pictures on the dashboards behind some loggers; where there are any, at each evaluation.
    """
    cache, every, epochs = FeatureCache(folder), plan.logging.knn_every, plan.schedule.total_epochs
    ks = plan.logging.knn_k if plan.training_set.num_classes and has_val else ()
    callbacks: list[Callback] = []
    if every and (ks or plan.training_set.images <= MOST_IMAGES):
        callbacks.append(OnlineEvaluation(cache, every, ks, plan.training_set.num_classes, epochs, folder))
    images = ReportImages(cache, folder, plan.seed, every, epochs)
    while_training = every if plan.logging.dashboard.any else 0

    def log_with_captions(loggers: Sequence[Logger], paths: Sequence[Path], step: int) -> None:
        add_captions(paths, f"{plan.method}, seed {plan.seed}, {folder.name}")
        log_pictures(loggers, paths, step)

    return [*callbacks, images, Pictures(cache, folder, plan.seed, log_with_captions, while_training, epochs)]
