"""Alarms: each is said in time, once, with what to try, and recorded; healthy numbers set off none."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runs.alarms import FILE, HISTORY, LIMITS, ROWS, WAIT_STEPS, Alarms, embedding_statistics
from tests.helpers.commands import plan_of
from utils.batch import Batch
from utils.errors import UserError
from utils.queue import FeatureQueue

WARM_UP = 10  # of 200 steps
COLLAPSED = {"embedding_std", "rank_share", "uniformity"}


class Head(nn.Module):
    """A method whose projector gives the embeddings that a test puts into it."""

    def __init__(self, embeddings, choices=None, queue_rows=0):
        super().__init__()
        self.projector = nn.Identity()
        self.embeddings, self.num_choices, self.grad_norm = embeddings, choices, torch.tensor(1.0)
        self.device = torch.device("cpu")
        if queue_rows:
            self.queue = FeatureQueue(queue_rows, 2, 0)


class Run:
    """A run without a Trainer: alarms that are fed with what they look at."""

    def __init__(self, folder, *words, log_every=5, step=0, found=None, **module):
        words = ("--steps", "200", "--batch_size", "32", "--warmup_epochs", str(WARM_UP / 44), *words)
        _, self.plan = plan_of("simclr", "--log_every", str(log_every), *words)
        self.throughput = SimpleNamespace(waited=0.0, elapsed=0.0)
        self.alarms, self.folder = Alarms(self.plan, folder, self.throughput), folder
        self.module = Head(module.pop("embeddings", torch.randn(32, 64)), **module)
        groups = [{"name": "weights", "lr": self.plan.optimizer.lr, "scheduled": True}, {"name": "probe", "lr": 0.1}]
        self.metrics, self.labels, self.waiting = {"loss": torch.tensor(1.0)}, torch.arange(32) % 10, 0.1
        self.index, self.rows = torch.randperm(32), []
        self.trainer = SimpleNamespace(
            global_step=step, is_global_zero=True, optimizers=[SimpleNamespace(param_groups=groups)],
            callback_metrics=self.metrics, datamodule=SimpleNamespace(image_alarms=lambda: found or {}),
            _logger_connector=SimpleNamespace(update_train_step_metrics=lambda: self.rows.append(1)),
        )  # fmt: skip
        self.alarms.on_train_start(self.trainer, self.module)

    def train(self, to_step):
        """Steps up to this one."""
        while self.trainer.global_step < to_step:
            batch = Batch(self.index, [], self.labels)
            self.alarms.on_train_batch_start(self.trainer, self.module, batch, 0)
            for z in (self.module.embeddings, torch.zeros(32, 64)):  # the second view plays no part
                self.module.projector(z)
            self.throughput.waited += self.waiting
            self.throughput.elapsed += 1
            self.trainer.global_step += 1
            self.alarms.on_train_batch_end(self.trainer, self.module, {}, batch, 0)
        return self

    def said(self):
        path = self.folder / FILE
        return {a["name"]: a for a in json.loads(path.read_text())["alarms"]} if path.exists() else {}


def break_collapse(run):
    run.module.embeddings = torch.ones(32, 64) + 1e-3 * torch.randn(32, 64)


def break_rank(run):
    run.module.embeddings = torch.randn(32, 1) @ torch.randn(1, 64)


def break_neighbours(run):
    run.metrics["nn_distinct"] = torch.tensor(1 / 32)


def break_loss(run):
    run.module.num_choices = 63
    run.metrics["loss"] = torch.tensor(math.log(63))


def break_order(run):
    run.index = torch.arange(32) + 7


def break_gradient(run):
    run.module.grad_norm = torch.tensor(50.0)


def break_rate(run):
    run.trainer.optimizers[0].param_groups[0]["lr"] = 0.0


def break_loader(run):
    run.waiting = 0.8


# defect -> the alarms that it sets off; at step 40 of a run that was healthy, with a row of numbers every 5 steps
CAUGHT = {
    break_collapse: {"collapse: standard deviation": 75, "collapse: uniformity": 75, "collapse: effective rank": 75},
    break_rank: {"collapse: effective rank": 75},
    break_neighbours: {"nearest-neighbour collapse": 75},
    break_loss: {"loss at chance": 145},
    break_order: {"images in file order": 75},
    break_gradient: {"gradient explosion": 45},
    break_rate: {"learning rate zero": 45},
    break_loader: {"starving device": 200},
}


@pytest.mark.parametrize("defect", CAUGHT)
def test_defect_is_caught_at_its_step_and_said_once(tmp_path, capsys, defect):
    run = Run(tmp_path).train(40)
    assert run.said() == {}
    defect(run)
    run.train(200)
    said = run.said()
    expected = CAUGHT[defect]
    if defect is break_collapse:
        assert {"collapse: standard deviation", "collapse: uniformity"} <= said.keys() <= expected.keys()
    elif defect is break_rank:
        assert set(expected) <= said.keys()
    else:
        assert said.keys() == expected.keys()
    printed = [line for line in capsys.readouterr().out.splitlines() if "alarm:" in line]
    assert len(printed) == len(said)
    for name, alarm in said.items():
        limit = next(limit for limit in LIMITS if limit.name == name)
        assert alarm["step"] <= expected.get(name, 75)
        assert limit.is_beyond(alarm["value"])
        assert alarm["threshold"] in (limit.low, limit.high)
        (line,) = [line for line in printed if name in line]
        for part in (f"at step {alarm['step']}", f"{alarm['value']:.3g}", f"{alarm['threshold']:g}", limit.remedy):
            assert part in line


def test_batches_of_one_class_are_told_from_a_data_set_of_one_class(tmp_path):
    run = Run(tmp_path / "skewed")
    (tmp_path / "skewed").mkdir()
    run.labels = torch.tensor([0] * 31 + [1])
    assert run.train(199).said() == {}
    (tmp_path / "sorted").mkdir()
    run = Run(tmp_path / "sorted")
    for step in range(5, 100, 5):
        run.labels = torch.full((32,), step % 10 + step // 20)
        run.train(step)
    assert set(run.said()) == {"batches of one class"}


def test_every_limit_has_a_defect():
    names = {name for alarms in CAUGHT.values() for name in alarms} | {"batches of one class"}
    assert names == {limit.name for limit in LIMITS}


def test_nothing_is_said_during_warm_up_or_of_one_reading(tmp_path):
    run = Run(tmp_path)
    break_collapse(run)
    run.train(WARM_UP - 1)
    run.module.embeddings = torch.randn(32, 64)
    run.train(50)
    break_collapse(run)
    run.train(60)
    run.module.embeddings = torch.randn(32, 64)
    assert run.train(200).said() == {}


def test_alarm_that_went_away_is_said_again(tmp_path, capsys):
    run = Run(tmp_path)
    for at, norm in ((40, 1.0), (60, 50.0), (100, 1.0), (130, 50.0)):
        run.module.grad_norm = torch.tensor(norm)
        run.train(at)
    first, second = json.loads((tmp_path / FILE).read_text())["alarms"]
    assert (first["step"], second["over"]) == (45, None)
    assert first["over"] < second["step"] == 105
    assert capsys.readouterr().out.count("alarm: gradient explosion") == 2


def test_stop_ends_the_run_in_one_line_with_the_row_that_tells_why(tmp_path):
    run = Run(tmp_path, "--on_alarm", "stop").train(40)
    break_rate(run)
    with pytest.raises(UserError, match="learning rate zero at step 45: .*--on_alarm stop ended the run") as e:
        run.train(200)
    assert "\n" not in str(e.value)
    assert run.rows == [1]
    assert run.said().keys() == {"learning rate zero"}


def test_what_is_wrong_before_training_is_said_then(tmp_path, capsys):
    run = Run(tmp_path, found={"identical images": "1 of 9 images"}, queue_rows=2 * 1438 + 1)
    assert set(run.said()) == {"identical images", "queue larger than the data set"}
    printed = capsys.readouterr().out
    assert "alarm: identical images before training: 1 of 9 images" in printed
    assert "take a queue of at most 2,876 rows" in printed
    with pytest.raises(UserError, match="identical images before training: 1 of 9 images; --on_alarm stop"):
        Run(tmp_path, "--on_alarm", "stop", found={"identical images": "1 of 9 images"})
    (tmp_path / "fine").mkdir()
    assert Run(tmp_path / "fine", queue_rows=2 * 1438).said() == {}


def test_resumed_run_knows_what_was_said(tmp_path, capsys):
    run = Run(tmp_path).train(40)
    break_gradient(run)
    run.train(50)
    capsys.readouterr()
    run = Run(tmp_path, step=50, found={"identical images": "said before the first step"})
    run.train(90)
    assert run.said()["gradient explosion"]["over"] == 75, "usual norms are known after 20 steps"
    assert "alarm" not in capsys.readouterr().out
    run = Run(tmp_path, step=40)
    assert run.alarms.alarms == [], "it was said after the checkpoint"
    (tmp_path / FILE).write_text("{")
    assert Run(tmp_path, step=50).alarms.alarms == []


def test_full_disk_does_not_end_a_run_for_a_remark(tmp_path, capsys):
    run = Run(tmp_path / "missing").train(40)
    break_rate(run)
    run.train(60)
    assert "alarm: learning rate zero" in capsys.readouterr().out


def test_accumulated_batches_are_read_once(tmp_path):
    run = Run(tmp_path)
    run.train(5)
    readings = len(run.alarms._labels), run.alarms._labels.total()
    run.alarms.on_train_batch_end(run.trainer, run.module, {}, Batch(run.index, [], run.labels), 0)
    assert (len(run.alarms._labels), run.alarms._labels.total()) == readings


def test_a_step_that_is_not_logged_does_not_wait_for_the_device(tmp_path):
    """Tensors without values cannot be read: a step that asks for one fails."""
    run = Run(tmp_path, log_every=1000)
    run.module.grad_norm = torch.ones((), device="meta")
    run.module.embeddings = torch.ones(32, 64, device="meta")
    run.index = run.labels = torch.ones(32, device="meta")
    run.train(30)
    assert len(run.alarms._norms) == 30
    run.alarms.teardown(run.trainer, run.module, "fit")
    assert not run.module.projector._forward_hooks


def test_embedding_statistics_of_known_embeddings():
    g = torch.Generator().manual_seed(0)
    healthy = embedding_statistics(torch.randn(500, 256, generator=g))
    assert healthy["embedding_std"] == pytest.approx(1, abs=0.02)
    assert healthy["rank_share"] == pytest.approx(ROWS / 6, rel=0.05)
    assert healthy["uniformity"] == pytest.approx(-4, abs=0.1)
    point = embedding_statistics(torch.ones(40, 256))
    assert point["embedding_std"] == pytest.approx(0, abs=1e-6)
    assert point["rank_share"] == pytest.approx(1 / 5, rel=0.01)
    assert point["uniformity"] == pytest.approx(0, abs=1e-5)
    line = embedding_statistics(torch.randn(40, 1, generator=g) @ torch.randn(1, 256, generator=g))
    assert line["embedding_std"] > 0.7
    assert line["rank_share"] == pytest.approx(1 / 5, rel=0.01)
    for nothing in (None, torch.ones(1, 4), torch.ones(4), torch.full((4, 4), math.nan)):
        assert all(math.isnan(v) for v in embedding_statistics(nothing).values())


def test_constants_fit_together():
    assert WAIT_STEPS < HISTORY
    for limit in LIMITS:
        assert limit.low < limit.high
        assert limit.remedy
        with contextlib.suppress(KeyError):
            assert not limit.is_beyond({"embedding_std": 0.8, "uniformity": -1.9, "gradient_ratio": 2.1}[limit.number])
