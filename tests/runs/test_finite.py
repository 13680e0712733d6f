"""NaN stops a run before it is saved."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runs.finite import REMEMBERED, NonFiniteLossCheck
from utils.errors import UserError

FINE = 1.0


class Run:
    """A run without a Trainer: a callback that is fed with losses and gradient norms."""

    def __init__(self, folder, log_every=100, accumulate=1, device="cpu", scaler=None):
        self.module = nn.Linear(2, 2, device=device)
        self.module.device, self.module.grad_norm = torch.device(device), None
        optimizer = torch.optim.SGD(self.module.parameters(), lr=0.5)
        self.trainer = SimpleNamespace(global_step=0, is_global_zero=True, optimizers=[optimizer], batches=0,
                                       precision_plugin=SimpleNamespace(scaler=scaler),
                                       accumulate_grad_batches=accumulate)  # fmt: skip
        self.check, self.device, self.folder = NonFiniteLossCheck(log_every, folder), device, folder
        self.check.on_train_start(self.trainer, self.module)

    def step(self, loss=FINE, norm=FINE):
        self.trainer.batches += 1
        if self.trainer.batches % self.trainer.accumulate_grad_batches == 0:
            self.trainer.global_step += 1
            self.module.grad_norm = torch.tensor(norm, device=self.device)
        outputs = {"loss": torch.tensor(loss / self.trainer.accumulate_grad_batches, device=self.device)}
        index = torch.arange(2, device=self.device) + 10 * self.trainer.batches
        self.check.on_train_batch_end(self.trainer, self.module, outputs, SimpleNamespace(index=index), 0)

    def stop(self, hook="check"):
        with pytest.raises(UserError) as e:
            getattr(self.check, hook)(self.trainer, self.module)
        assert "\n" not in str(e.value)
        return str(e.value), json.loads((self.folder / "post_mortem.json").read_text())


@pytest.mark.parametrize("hook", ["check", "on_train_epoch_end", "on_train_end"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_between_logged_steps_is_found_before_a_save_and_at_the_end(tmp_path, hook, value):
    run = Run(tmp_path)
    for loss in (4.0, 3.0, value, 2.0):
        run.step(loss)
    message, report = run.stop(hook)
    assert "the loss is not finite at step 3; try a lower --lr" in message
    assert report["step"] == report["step_of_indices"] == 3
    assert report["noticed_at_step"] == 4
    assert report["indices"] == [30, 31]
    assert report["last_finite"] == {"loss": 3.0, "gradient norm": 1.0}
    assert report["lr"] == 0.5


def test_gradient_is_watched_and_flags_are_read_where_numbers_are_logged(tmp_path):
    run = Run(tmp_path, log_every=3)
    for norm in (1.0, 1.0, 1.0, 7.0, math.nan):
        run.step(norm=norm)
    with pytest.raises(UserError, match="the gradient norm is not finite at step 5"):
        run.step()
    report = json.loads((tmp_path / "post_mortem.json").read_text())
    assert report["last_finite"] == {"loss": 1.0, "gradient norm": 7.0}


def test_weights_and_optimizer_are_looked_through_before_a_save(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.check.check(run.trainer, run.module)
    run.module.weight.data[0, 0] = math.inf
    assert "the state of weights and optimizer is not finite at step 1" in run.stop()[0]
    run.module.weight.data[0, 0] = 0.0
    run.trainer.optimizers[0].state[run.module.weight]["momentum_buffer"] = torch.tensor([math.nan])
    assert "the state of weights and optimizer" in run.stop()[0]


def test_accumulated_batches_belong_to_the_step_that_they_make(tmp_path):
    run = Run(tmp_path, accumulate=2)
    for loss in (1.0, 1.0, math.nan, 1.0):
        run.step(loss)
    message, report = run.stop()
    assert "at step 2" in message
    assert report["indices"] == [30, 31, 40, 41]


def test_batch_that_is_forgotten_is_replaced_by_the_last_one(tmp_path):
    run = Run(tmp_path, log_every=10**9)
    run.step(math.nan)
    for _ in range(REMEMBERED):
        run.step()
    report = run.stop()[1]
    assert report["step"] == 1
    assert report["step_of_indices"] == REMEMBERED + 1


def test_infinite_gradients_under_a_scaler_are_its_business(tmp_path):
    run = Run(tmp_path, scaler=object())
    run.step(norm=math.inf)
    run.check.check(run.trainer, run.module)


def test_full_disk_does_not_hide_the_reason(tmp_path, monkeypatch):
    run = Run(tmp_path / "missing")
    run.step(math.nan)
    with pytest.raises(UserError, match="the loss is not finite at step 1"):
        run.check.check(run.trainer, run.module)


def test_a_step_does_not_wait_for_the_device():
    """Tensors without values cannot be read: a step that asks for one fails."""
    run = Run(None, device="meta")
    for _ in range(3):
        run.step()
