"""The plugin for mixed precision, with a GradScaler on the CPU."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from pytorch_lightning.plugins import precision as lightning
from torch import nn
from torch.amp import GradScaler

from runs.precision import MixedPrecision, build_precision
from tests.helpers.pretended_cuda import pretended_cuda
from utils.plan import HardwareConfig


def steps(plugin, optimizer, parameter, gradients):
    """Whether each step, with these gradients of the scaled loss, was skipped."""
    skipped = []
    model = SimpleNamespace(automatic_optimization=True)
    with mock.patch.object(lightning.MixedPrecision, "_after_closure"):  # it calls hooks of a Trainer
        for gradient in gradients:

            def closure(gradient=gradient):
                plugin.scaler.scale(torch.ones(1))
                parameter.grad = torch.full_like(parameter, gradient)
                return torch.ones(1)

            plugin.optimizer_step(optimizer, model, closure)
            skipped.append(plugin.step_was_skipped)
    return skipped


@pytest.mark.parametrize("fused", [False, True])
def test_step_was_skipped_only_where_a_gradient_is_not_finite(fused):
    parameter = nn.Parameter(torch.ones(3))
    plugin = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=8.0, growth_interval=2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused)
    assert not plugin.step_was_skipped
    gradients = [torch.inf, 1.0, 1.0, 1.0, torch.nan, 1.0]  # after two finite ones the scale grows
    assert steps(plugin, optimizer, parameter, gradients) == [True, False, False, False, True, False]


def test_step_was_skipped_is_right_after_the_scale_of_a_checkpoint_is_loaded():
    parameter = nn.Parameter(torch.ones(3))
    plugin = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=2.0**16))
    state = GradScaler("cpu", init_scale=4.0).state_dict() | {"scale": 4.0, "_growth_tracker": 0}
    plugin.load_state_dict(state)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    assert steps(plugin, optimizer, parameter, [1.0, torch.inf]) == [False, True]


@pytest.mark.parametrize(
    ("precision", "accelerator", "dtype", "cached"),
    [("bf16-mixed", "cpu", torch.bfloat16, False), ("16-mixed", "cuda", torch.float16, True),
     ("bf16-mixed", "cuda", torch.bfloat16, True)],
)  # fmt: skip
def test_autocast_caches_weights_on_a_gpu_only(precision, accelerator, dtype, cached):
    hardware = HardwareConfig(accelerator, 1, 1, 1, precision=precision)
    with pretended_cuda():
        plugin = build_precision(hardware)
        autocast = plugin.autocast_context_manager()
    assert (autocast.device, autocast.fast_dtype, autocast._cache_enabled) == (accelerator, dtype, cached)


def test_float32_has_no_plugin_of_its_own():
    assert type(build_precision(HardwareConfig("cpu", 1, 1, 1, precision="32"))) is lightning.Precision


def test_checkpoints_have_the_scale_under_the_name_of_lightnings_plugin():
    assert MixedPrecision.__qualname__ == lightning.MixedPrecision.__qualname__
