"""DINO: its equation on the method's own networks, its teacher, its centre and its frozen prototypes."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from runs.checkpoint import WEIGHTS, CheckpointCallback
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat, random_batch

SMALL = ["--batch_size", "8", "--num_prototypes", "12"]


def build(*words, **options):
    """A method whose teacher differs from the student."""
    torch.manual_seed(0)
    method = build_method("dino", Flat(12), 6, *SMALL, *words, **options).double()
    with torch.no_grad():
        for p in method.teacher_backbone.parameters():
            p += 0.1 * torch.randn_like(p)
        method.center.value += 0.1 * torch.randn_like(method.center.value)
    return method


def batch(views=2):
    return random_batch(8, views, dtype=torch.double)


def naive_dino(method, b):
    """Eq. 1 to 3, an image and a pair of views at a time."""
    student = [method.head(method.backbone(v)) for v in b.views]
    teacher = [method.teacher_head.teacher(method.teacher_backbone.teacher(v)) for v in b.views[:2]]
    c, t = method.center.value, float(method.teacher_temperature.value)
    values = [
        -(F.softmax((teacher[g][i] - c) / t, dim=0) * F.log_softmax(student[v][i] / 0.1, dim=0)).sum()
        for g in range(2) for v in range(len(student)) if v != g for i in range(8)
    ]  # fmt: skip
    return torch.stack(values).mean(), teacher


@pytest.mark.parametrize("small", [0, 2])
def test_training_loss_agrees_with_the_formula_and_trains_the_student_only(small):
    method, b = build("--small_views", str(small)), batch(2 + small)
    expected, _ = naive_dino(method, b)
    out = method.compute_losses(b)
    assert_close(out["loss"], expected, rtol=0, atol=1e-12)
    out["loss"].backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in trained} == {"backbone", "head"}
    teacher = [*method.teacher_backbone.parameters(), *method.teacher_head.parameters()]
    assert not any(p.requires_grad for p in teacher)


def test_center_moves_once_per_step_to_the_mean_of_the_teachers_logits():
    method, b = build(), batch()
    before = method.center.value.clone()
    _, teacher = naive_dino(method, b)
    method.compute_losses(b)
    assert torch.equal(method.center.value, before), "the loss must not move the centre"
    method.center.after_optimizer_step(0.0)
    assert_close(method.center.value, 0.9 * before + 0.1 * torch.cat(teacher).mean(dim=0).detach())


def test_probe_and_evaluation_take_the_teacher():
    method, b = build(), batch()
    assert method.eval_backbone() is method.teacher_backbone.teacher
    feats = method.forward_views(b)
    for ours, view in zip(feats.evaluated, b.views, strict=True):
        assert_close(ours, method.eval_backbone()(view))
        assert not ours.requires_grad


def test_teacher_has_batch_statistics_of_its_own():
    method = build()
    before = method.backbone.layers[2].running_mean.clone()
    method.teacher_backbone(batch().views[0])
    assert torch.equal(method.backbone.layers[2].running_mean, before)
    assert method.teacher_backbone.teacher.layers[2].running_mean.abs().sum() > 0


def test_prototypes_are_frozen_for_the_first_epochs():
    method = build("--frozen_epochs", "2")
    (prefix,) = method.param_group_rules()
    assert method.param_group_rules()[prefix].frozen_epochs == 2
    names = [name for name, _ in method.named_parameters() if name.startswith(prefix)]
    assert names == ["head.prototypes.weight"]


def test_teacher_temperature_rises_over_the_warm_up():
    words = ["--warmup_teacher_temperature", "0.02", "--teacher_temperature", "0.08", "--teacher_warmup_epochs", "6"]
    temperature = build(*words).teacher_temperature
    for epoch, expected in ((0.0, 0.02), (3.0, 0.05), (6.0, 0.08), (9.0, 0.08)):
        temperature.update(epoch, 0.5)
        assert temperature.value.item() == pytest.approx(expected)


def test_defaults_are_the_papers():
    method = build_method("dino", Flat(12), 6, "--num_prototypes", "12")
    config = method.plan.optimizer
    assert (config.name, config.weight_decay, config.final_weight_decay, config.clip_grad) == ("adamw", 0.04, 0.4, 3.0)
    assert (method.args.teacher_temperature, method.args.student_temperature) == (0.07, 0.1)
    assert (method.args.tau, method.args.center_momentum, method.args.frozen_epochs) == (0.996, 0.9, 1.0)


def test_drop_path_of_the_teacher_is_off():
    from timm.layers import DropPath

    torch.manual_seed(0)
    backbone = nn.Sequential(Flat(12), DropPath(0.5))
    method = build_method("dino", backbone, 6, *SMALL)
    assert method.backbone[1].drop_prob == 0.5
    assert method.eval_backbone()[1].drop_prob == 0.0


def test_exported_backbone_is_the_teacher(tmp_path):
    method = build()
    checkpoint = {"state_dict": method.state_dict(), "epochs": 1, "global_step": 2}
    method.on_save_checkpoint(checkpoint)
    CheckpointCallback(tmp_path, {})._write_backbone(checkpoint)
    exported = load_file(tmp_path / WEIGHTS)
    teacher = method.teacher_backbone.teacher.state_dict()
    assert exported.keys() == teacher.keys() == method.backbone.state_dict().keys()
    assert all(torch.equal(value, teacher[name]) for name, value in exported.items())
    assert not torch.equal(exported["layers.1.weight"], method.backbone.layers[1].weight)
