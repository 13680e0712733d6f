"""Tests of evaluations during training: one extraction per step, kNN at its epochs, which callbacks a plan has."""

import contextlib
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest

from evaluation.callbacks import FeatureCache, OnlineEvaluation, Pictures, ReportImages, attempt, evaluation_callbacks
from evaluation.features import extract
from evaluation.knn import knn_accuracy
from evaluation.quality import quality_of
from tests.helpers.commands import plan_of
from tests.helpers.disk import largest_file
from tests.helpers.evaluation import CPU, Pixels, digits_module
from utils.errors import Interrupted, UserError


class Module(Pixels):
    """A module that remembers what it logs, and counts the batches that it sees."""

    device, batches = CPU, 0

    def __init__(self):
        super().__init__()
        self.logged = []

    def forward(self, x):
        self.batches += 1
        return super().forward(x)

    def log_dict(self, numbers, on_step, on_epoch):
        self.logged.append(numbers)


def trainer_at(step, epoch=0):
    precision = SimpleNamespace(forward_context=contextlib.nullcontext)
    module = digits_module(batch_size=2000, images=200)
    return SimpleNamespace(
        global_step=step, current_epoch=epoch, datamodule=module, precision_plugin=precision, logged_metrics={}
    )


def test_feature_cache_extracts_once_per_step():
    cache, module = FeatureCache(), Module()
    train, val = cache.get(trainer_at(3), module)
    assert (len(train.x), len(val.x), module.batches) == (200, 359, 2)
    assert cache.get(trainer_at(3), module)[0] is train
    assert module.batches == 2
    cache.get(trainer_at(4), module)
    assert module.batches == 4


def test_feature_cache_frees_the_old_features_before_it_extracts_new_ones(monkeypatch):
    cache, module = FeatureCache(), Module()
    old = [weakref.ref(features.x) for features in cache.get(trainer_at(3), module)]
    alive = []

    def extract_and_look(*args, folder):
        alive.append([reference() is not None for reference in old])
        return extract(*args)

    monkeypatch.setattr("evaluation.callbacks.extract", extract_and_look)
    cache.get(trainer_at(4), module)
    assert alive == [[False, False]] * 2


def test_feature_cache_has_no_features_after_a_failed_extraction(monkeypatch):
    cache, trainer = FeatureCache(), trainer_at(3)
    cache.get(trainer, Module())
    monkeypatch.setattr("evaluation.callbacks.extract", lambda *args, **_: 1 / 0)
    trainer.global_step = 4
    with pytest.raises(ZeroDivisionError):
        cache.get(trainer, Module())
    trainer.global_step = 3
    assert not cache.has(trainer), "those of step 3 are gone"


def test_online_knn_logs_at_its_epochs_and_after_the_last(tmp_path):
    module, cache = Module(), FeatureCache()
    callback = OnlineEvaluation(cache, 2, [5], 10, 5, tmp_path)
    for epoch in range(5):
        callback.on_train_epoch_end(trainer_at(epoch + 1, epoch), module)
    assert len(module.logged) == 3, "after epochs 2, 4 and 5"
    expected = knn_accuracy(*cache.get(trainer_at(5), module), [5], 10)[5]
    quality = quality_of(cache.get(trainer_at(5), module)[1].x)
    assert module.logged[-1] == {"knn_5": expected, **quality}
    assert quality.keys() == {"quality/rankme", "quality/alpha_req", "quality/uniformity", "quality/std"}


def test_features_that_are_not_finite_have_no_quality_and_end_nothing(tmp_path, monkeypatch):
    module = Module()
    monkeypatch.setattr(Module, "forward", lambda self, x: Pixels.forward(self, x) * float("nan"))
    OnlineEvaluation(FeatureCache(), 1, [], 0, 5, tmp_path).on_train_epoch_end(trainer_at(1), module)
    assert module.logged == [{}]


def test_evaluations_of_a_plan(tmp_path):
    """Without labels or validation images there is no kNN, and with very many unlabelled images no quality either."""
    _, plan = plan_of("simclr", "--knn_every", "1")

    def evaluated(classes=10, has_val=True, **logging):
        changed = replace(plan, logging=replace(plan.logging, **logging),
                          training_set=replace(plan.training_set, num_classes=classes))  # fmt: skip
        *first, images, pictures = evaluation_callbacks(changed, tmp_path, has_val, print)
        assert (type(images), type(pictures)) == (ReportImages, Pictures)
        return [callback.ks for callback in first], pictures.every

    assert evaluated() == ([[20, 200]], 0)
    assert evaluated(classes=0) == evaluated(has_val=False) == ([[]], 0)
    assert evaluated(knn_every=0) == ([], 0)
    board = replace(plan.logging.dashboard, tensorboard=True)
    assert evaluated(dashboard=board)[1] == 1, "dashboards get the pictures of each evaluation"
    many = replace(plan, training_set=replace(plan.training_set, num_classes=0, images=100_001))
    assert len(evaluation_callbacks(many, tmp_path, True, print)) == 2


def test_pictures_are_drawn_at_each_evaluation_where_there_is_a_dashboard(tmp_path, monkeypatch):
    shown = []
    callback = Pictures(FeatureCache(), tmp_path, 0, lambda *args: shown.append(args[2]), every=2, total_epochs=4)
    monkeypatch.setattr(callback, "_curves", lambda: tmp_path / "curves.png")
    monkeypatch.setattr("evaluation.callbacks.MOST_IMAGES", 0)
    for epoch in range(4):
        trainer = trainer_at(10 * (epoch + 1), epoch)
        trainer.is_global_zero, trainer.loggers = True, []
        callback.on_train_epoch_end(trainer, Module())
    callback.on_train_end(trainer, Module())
    assert shown == [19, 39], "with the last optimizer step before, from 0"


def test_pictures_are_drawn_when_training_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.pictures.embedding", lambda path, *args: path.write_bytes(b"x"))
    (tmp_path / "metrics.csv").write_text("step,loss,knn_20\n0,2.0,\n5,1.0,80\n")
    trainer, shown = trainer_at(1), []
    trainer.is_global_zero, trainer.loggers = True, []
    callback = Pictures(FeatureCache(), tmp_path, 0, lambda loggers, paths, step: shown.extend(paths))
    callback.on_train_end(trainer, Module())
    assert [path.name for path in shown] == ["curves.png", "neighbours.png", "embedding.png"]
    assert all(path.is_file() for path in shown)
    monkeypatch.setattr("evaluation.callbacks.MOST_IMAGES", 100)
    module, shown[:] = Module(), []
    callback.on_train_end(trainer, module)
    assert ([path.name for path in shown], module.batches) == (["curves.png"], 0)


def test_knn_that_fails_costs_a_line_and_not_the_run(tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError("CUDA error: out of luck\nhints")

    module, cache, trainer = Module(), FeatureCache(), trainer_at(3, epoch=2)
    trainer.logged_metrics = {"knn_5": 1.0, "loss": 2.0}
    with monkeypatch.context() as m:
        m.setattr("evaluation.callbacks.knn_accuracy", fail)
        OnlineEvaluation(cache, 1, [5], 10, 5, tmp_path).on_train_epoch_end(trainer, module)
    line = "  warning: kNN of epoch 3 failed: RuntimeError: CUDA error: out of luck; the run goes on\n"
    assert capsys.readouterr().out == line
    assert not module.logged
    assert trainer.logged_metrics == {"loss": 2.0}, "the accuracy of an earlier epoch is not shown as that of this one"
    OnlineEvaluation(cache, 1, [5], 10, 5, tmp_path).on_train_epoch_end(trainer_at(4, epoch=3), module)
    assert len(module.logged) == 1


@pytest.mark.parametrize("error", [UserError("a.png is broken"), Interrupted("Interrupted at step 8")])
def test_mistakes_of_the_user_and_signals_pass_through(error):
    def fail():
        raise error

    with pytest.raises(type(error), match=str(error)):
        attempt("kNN", fail)


def _attempts(rank, world):
    """What ranks go on with where an evaluation fails on one of them, before or after it shares features."""
    first = attempt("kNN", lambda: 1 / (1 - rank))
    loader = digits_module(batch_size=100, images=200).eval_dataloader("val", CPU)
    second = attempt("kNN", lambda: len(extract(Broken() if rank else Pixels(), loader).x))
    third = attempt("kNN", lambda: len(extract(Pixels(), loader).x))
    return first, second, third


class Broken(Pixels):
    def forward(self, x):
        raise RuntimeError("broken")


def test_evaluation_that_fails_on_one_process_is_left_out_by_all(ranks):
    assert ranks(2).run(_attempts) == [(None, None, 359)] * 2


def test_picture_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("evaluation.pictures.neighbours", fail)
    monkeypatch.setattr("evaluation.pictures.embedding", lambda path, *args: path.write_bytes(b"x"))
    trainer, shown = trainer_at(1), []
    trainer.is_global_zero, trainer.loggers = True, []
    Pictures(FeatureCache(), tmp_path, 0, lambda loggers, paths, step: shown.extend(paths)).on_train_end(
        trainer, Module()
    )
    assert [path.name for path in shown] == ["embedding.png"]
    assert "No space left on device; the run goes on" in capsys.readouterr().out


def test_picture_that_cannot_be_written_is_one_line_and_the_others_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evaluation.pictures.embedding", lambda path, *args: path.write_bytes(b"x"))
    trainer, shown = trainer_at(1), []
    trainer.is_global_zero, trainer.loggers = True, []
    (tmp_path / "metrics.csv").write_text("step,loss\n0,2.0\n")
    with largest_file(1000):
        Pictures(FeatureCache(), tmp_path, 0, lambda loggers, paths, step: shown.extend(paths)).on_train_end(
            trainer, Module()
        )
    assert [path.name for path in shown] == ["embedding.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["embedding.png", "metrics.csv"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("File too large") for line in lines] == [1, 1]
    assert "the run goes on" in lines[0]


def test_report_images_are_views_of_the_first_step_and_neighbours_at_each_evaluation(tmp_path, monkeypatch):
    module, cache = Module(), FeatureCache()
    callback = ReportImages(cache, tmp_path, 0, every=2, total_epochs=5)
    (batch, *_) = trainer_at(0).datamodule.augmented_loader(range(20), CPU)
    for step in range(2):
        callback.on_train_batch_start(trainer_at(step), module, batch, step)
    written = []
    for epoch in range(5):
        trainer = trainer_at(epoch + 1, epoch)
        trainer.lightning_module = module
        (tmp_path / "neighbours.json").unlink(missing_ok=True)
        if epoch != 1:  # the evaluation of the second epoch failed, and left no features
            cache.get(trainer, module)
        callback.on_train_epoch_end(trainer, module)
        written += [
            epoch for path in tmp_path.glob("neighbours.json") if f"after epoch {epoch + 1}" in path.read_text()
        ]
    assert written == [3], "Pictures draws the last ones"
    assert "step 0" in (tmp_path / "views.json").read_text()


def test_report_images_that_fail_are_a_line(tmp_path, capsys):
    callback = ReportImages(FeatureCache(), tmp_path, 0, every=1, total_epochs=5)
    (batch, *_) = trainer_at(0).datamodule.augmented_loader(range(20), CPU)
    callback.on_train_batch_start(trainer_at(0), None, batch, 0)
    with largest_file(100):
        callback.on_train_epoch_end(trainer_at(1), None)
    assert "the report's data failed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
