"""Methods in a training loop of one's own, without a command line."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from methods import METHODS, build_method
from methods.build import Loop
from tests.helpers.commands import construct, plan_of
from utils.batch import Batch
from utils.errors import UserError


def backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


IN_A_LOOP = [name for name in METHODS if not METHODS[name].transformer_name
             and name not in ("clusterfit", "deepclusterv2", "distill")]  # fmt: skip


@pytest.mark.parametrize("name", IN_A_LOOP)
def test_method_of_a_loop_is_that_of_the_command(name):
    """Equal losses, teachers and queues over two steps; the optimizer is that of the plan."""
    settings, plan = plan_of(name, "--batch_size", "8", "--epochs", "3")
    loop = Loop(epochs=3, images=1438, batch_size=8, size=32, classes=10)
    built = []
    for make in (lambda: construct(settings, plan, backbone(), 8),
                 lambda: build_method(name, backbone(), loop, **vars(settings))):  # fmt: skip
        torch.manual_seed(1)
        built.append(make())
    for step in range(2):
        views = [torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(10 * step + i)) for i in range(3)]
        batch = Batch(torch.arange(8), views[: built[0].large_views], torch.arange(8))
        losses = []
        for method in built:
            torch.manual_seed(2)
            optimizer = method.build_optimizer()
            loss = method.compute_losses(batch)["loss"]
            loss.backward()
            method.on_before_optimizer_step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            method.after_optimizer_step()
            losses.append(loss.item())
            assert optimizer.param_groups[0]["lr"] == pytest.approx(plan.optimizer.lr)
        assert losses[0] == losses[1]
    assert built[1].plan.schedule == plan.schedule
    optimizers = [replace(method.plan.optimizer, fused=True) for method in built]
    assert optimizers[0] == optimizers[1]
    first, second = (method.state_dict() for method in built)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_settings_have_the_method_s_defaults_and_conditions():
    loop = Loop(size=16, batch_size=4)
    method = build_method("nnclr", backbone(), loop, temperature=0.2, queue_size=64, hidden_mlp=16)
    assert (method.args.temperature, method.args.queue_size, method.args.top_k) == (0.2, 64, 1)
    for name, settings, message in (
        ("nnclrr", {}, r"unknown method 'nnclrr' \(did you mean nnclr\?\)"),
        ("nnclr", {"temperatur": 1}, r"nnclr has no setting 'temperatur' \(did you mean temperature\?\)"),
        ("nnclr", {"temperature": -1}, "temperature=-1: got '-1', needs a number above 0"),
        ("nnclr", {"push_views": 3}, "push_views=3: choose one of 1, 2"),
        ("nnclr", {"predictor": "no"}, "predictor='no': it is True or False"),
        ("nnclr", {"predictor": False, "pred_hidden_mlp": 8}, "pred_hidden_mlp has no effect without a predictor"),
        (
            "nnclr",
            {"proj_layers": 1, "hidden_mlp": 8},
            "hidden_mlp has no effect without a projector of several",
        ),
        (
            "distill",
            {"teacher": backbone(), "regress": True, "queue_size": 8},
            "queue_size has no effect without simil",
        ),
        ("deepclusterv2", {}, "deepclusterv2 reads the data set between or before its epochs"),
        ("distill", {}, "distill learns from another network; give it as teacher="),
    ):
        with pytest.raises(UserError, match=message):
            build_method(name, backbone(), loop, **settings)


def test_warm_up_of_a_long_run_is_that_of_the_method():
    """MAE warms up for 40 epochs in runs of 400 and more."""
    vit = timm.create_model("test_vit", img_size=32, patch_size=4, num_classes=0)
    loop = Loop(epochs=800, images=64, batch_size=8, size=32)
    method = build_method("mae", vit, loop, decoder_dim=8, decoder_layers=1, decoder_heads=2)
    assert method.plan.schedule.warmup_steps == 40 * 8


def test_teacher_is_frozen():
    torch.manual_seed(3)
    teacher = backbone()
    method = build_method("distill", backbone(), Loop(size=16, batch_size=4), teacher=teacher, queue_size=8)
    assert not any(p.requires_grad for p in teacher.parameters())
    views = [torch.randn(4, 3, 16, 16) for _ in range(method.large_views)]
    loss = method.compute_losses(Batch(torch.arange(4), views, torch.full((4,), -1)))["loss"]
    assert torch.isfinite(loss)


def test_network_with_a_map_of_features_is_refused():
    with pytest.raises(UserError, match=r"features of shape \(1, 8, 14, 14\), not \(N, D\)"):
        build_method("simclr", nn.Sequential(nn.Conv2d(3, 8, 3)), Loop(size=16))
