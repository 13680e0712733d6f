"""The frozen network that a method learns from: its weights, its stem, and a resumed run."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from backbones.build import build_backbone
from backbones.load import save_backbone
from backbones.teacher import with_teacher
from tests.helpers.commands import TEACHER, plan_of, teacher_file
from utils.errors import UserError
from utils.plan import BackboneConfig

PLAN = plan_of("simclr", "--small_views", "1")[1]


def settings(name=TEACHER, weights=None):
    return Namespace(teacher=name, teacher_weights=weights or teacher_file())


def test_with_teacher_loads_the_weights_and_records_the_stem():
    plan, networks = with_teacher(settings(), PLAN)
    assert plan == replace(PLAN, teacher=BackboneConfig(TEACHER, "imagenet"))
    teacher = networks["teacher"]
    assert teacher.dim == teacher(torch.zeros(2, 3, 18, 18)).shape[1]
    expected, _ = build_backbone(plan.teacher, 32)
    torch.manual_seed(17)
    expected, _ = build_backbone(plan.teacher, 32)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, teacher.network.state_dict()[name]), name


def test_with_teacher_takes_the_stem_from_the_weights(tmp_path):
    """A bare state dict has no facts beside its tensors; its first convolution tells."""
    network, _ = build_backbone(BackboneConfig("resnet18", "small"), 32)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    large = replace(PLAN, views=replace(PLAN.views, large_size=72, small_views=0))
    plan, _ = with_teacher(settings("resnet18", str(tmp_path / "bare.pt")), large)
    assert plan.teacher.stem == "small"


def test_with_teacher_of_a_resumed_run_does_not_read_the_file():
    plan, networks = with_teacher(settings(), PLAN)
    again, resumed = with_teacher(settings(weights="gone.ckpt"), plan)
    assert again == plan
    assert networks["teacher"].state_dict().keys() == resumed["teacher"].state_dict().keys()


def test_with_teacher_draws_no_random_number_of_the_method():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with_teacher(settings(), PLAN)
    assert torch.equal(torch.rand(1), expected)


def test_with_teacher_changes_nothing_for_other_methods():
    assert with_teacher(Namespace(temperature=0.1), PLAN) == (PLAN, {})


def refused(name, weights):
    with pytest.raises(UserError) as e:
        with_teacher(settings(name, str(weights)), PLAN)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_with_teacher_refuses_weights_that_do_not_fit(tmp_path):
    network, _ = build_backbone(BackboneConfig(TEACHER, "imagenet"), 32)
    state = {f"encoder.{name}": value for name, value in network.state_dict().items()}
    torch.save({"model": state}, tmp_path / "bare.pt")
    assert f"teacher resnet18: {tmp_path}/bare.pt" in refused("resnet18", tmp_path / "bare.pt")
    del state["encoder.conv1.0.weight"]
    torch.save({"model": state}, tmp_path / "cut.pt")
    cut = refused(TEACHER, tmp_path / "cut.pt")
    assert "does not fit the backbone" in cut
    assert cut.endswith("name the backbone of the weights")
    assert "does not exist; name a run folder" in refused(TEACHER, tmp_path / "gone.pt")
    assert "unknown backbone 'resnet81' (did you mean" in refused("resnet81", tmp_path / "bare.pt")
    save_backbone(tmp_path / "facts.safetensors", network, {"backbone": TEACHER})
    assert f"holds the weights of {TEACHER}, not of resnet18" in refused("resnet18", tmp_path / "facts.safetensors")
