"""Flags resolved into a plan."""

import dataclasses

import pytest

from backbones.build import build_backbone
from cli.plan import describe, disk_bytes, notes
from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from tests.helpers.commands import TINY, build_method, plan_of
from tests.helpers.networks import Flat
from utils.errors import UserError
from utils.plan import BackboneConfig


def text_of(name="simclr", *words):
    method = build_method(name, Flat(12), 6, *words)
    numbers = method.trainable_parameters(), method.checkpoint_bytes()
    return describe(method.plan, "memory", "it fits", vars(method.args), *numbers)


def test_resolve_scales_the_learning_rate_with_the_global_batch():
    words = ("--lr", "0.3", "--batch_size", "64", "--accumulate", "2")
    plan = plan_of("simclr", *words)[1]
    assert (plan.batch.forward_batch, plan.batch.global_batch) == (64, 128)
    assert plan.optimizer.lr == pytest.approx(0.15)
    assert "0.3 x 128 / 256 = 0.15" in text_of("simclr", *words)


def test_describe_says_that_algorithms_are_deterministic():
    assert "precision 32 (from the flag), deterministic algorithms\n" in text_of("simclr", "--deterministic")
    assert "deterministic" not in text_of("simclr")


@pytest.mark.parametrize(
    ("words", "steps", "epochs", "warmup"),
    [
        (["--epochs", "100"], 2200, 100, 220),
        (["--epochs", "20"], 440, 20, 44),
        (["--steps", "30"], 30, 2, 3),
        (["--epochs", "20", "--warmup_epochs", "1"], 440, 20, 22),
        (["--epochs", "4", "--accumulate", "3"], 32, 4, 3),
        (["--epochs", "4", "--scheduler", "cosine"], 88, 4, 0),
    ],
)
def test_resolve_counts_steps_epochs_and_warmup(words, steps, epochs, warmup):
    schedule = plan_of("simclr", "--batch_size", "64", *words)[1].schedule
    assert (schedule.total_steps, schedule.total_epochs, schedule.warmup_steps) == (steps, epochs, warmup)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "2000"], "1438 images, fewer than one global batch of 2000 .* lower --batch_size to 1438"),
        (["--batch_size", "1"], "--batch_size 1: .*at least 2"),
        (["--warmup_epochs", "1e308"], "--warmup_epochs 1e.308 is inf of .* steps; lower it"),
        (["--warmup_epochs", "200"], "--warmup_epochs 200 is .* steps; lower it"),
    ],
)
def test_resolve_refuses_impossible_plans(words, message):
    with pytest.raises(UserError, match=message):
        plan_of("simclr", *words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "every 1 epoch, and at the end of the run"),
        (["--checkpoint_every", "500steps"], "every 500 steps, and at the end of the run"),
        (["--checkpoint_every", "15m", "--keep_every", "10"], "every 15 min, and at the end of the run; one is kept"),
        (["--checkpoint_every", "5400s"], "every 1.5 h, and"),
        (["--checkpoint_every", "90s"], "every 1.5 min, and"),
        (["--checkpoint_every", "0.5s"], "every 0.5 s, and"),
    ],
)
def test_plan_says_when_checkpoints_are_written(words, text):
    assert f"checkpoints      {text}" in text_of("simclr", *words)


def test_resolve_under_a_launcher_counts_all_processes(monkeypatch):
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plan = plan_of("simclr", "--batch_size", "16")[1]
    assert (plan.hardware.nodes, plan.hardware.processes, plan.batch.global_batch) == (2, 4, 64)


def test_plan_is_frozen_in_every_part():
    plan = plan_of("simclr")[1]
    for part in (plan, *(getattr(plan, f.name) for f in dataclasses.fields(plan))):
        if dataclasses.is_dataclass(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, dataclasses.fields(part)[0].name, None)


def test_notes_tell_of_neighbours_that_the_labels_do_not_allow():
    words = ("--batch_size", "8", "--knn_k", "20", "200")
    args = parse_pretraining([*TINY, *words], METHODS, DATASETS)
    plan = plan_of("simclr", *words, images=100)[1]
    assert plan.logging.knn_k == (20,)
    assert any("k = 20 of 20 200: 100 labelled" in note for note in notes(plan, args))
    assert notes(plan_of("simclr", *words)[1], args) == []


def test_notes_tell_of_a_dashboard_flag_without_the_dashboard():
    argv = [*TINY, "--project", "mine"]
    args = parse_pretraining(argv, METHODS, DATASETS)
    assert any("--project has no effect without --wandb" in note for note in notes(plan_of("simclr")[1], args))
    args = parse_pretraining([*argv, "--wandb"], METHODS, DATASETS)
    assert notes(plan_of("simclr")[1], args) == []


def test_describe_shows_the_settings_of_the_method_and_the_size_of_the_run():
    shown = text_of("nnclr", "--queue_size", "300", "--temperature", "0.2")
    for phrase in ("queue_size 300", "temperature 0.2", "proj_dim 8", "M trainable", "a checkpoint takes about"):
        assert phrase in shown


def test_describe_names_the_teacher_and_the_stem_of_its_weights():
    assert "teacher          test_resnet.r160_in1k, imagenet stem (of the weights), frozen" in text_of(
        "distill", "--batch_size", "8"
    )
    assert "frozen" not in text_of("simclr")


def test_plan_tells_the_disk_that_checkpoints_take(monkeypatch):
    words = ("--epochs", "10", "--keep_every", "3")
    built = build_method("simclr", Flat(12), 6, *words)
    needed = disk_bytes(built.plan, built.checkpoint_bytes())
    assert needed == (3 + 3) * built.checkpoint_bytes()
    assert f"about {needed / 2**20:.1f} MiB for checkpoints" in text_of("simclr", *words)
    args = parse_pretraining([*TINY, *words], METHODS, DATASETS)
    before = notes(built.plan, args, built)
    monkeypatch.setattr("cli.plan._free_bytes", lambda folder: needed - 1)
    (note,) = set(notes(built.plan, args, built)) - set(before)
    assert "the disk of trained_models has" in note


def test_describe_shows_the_settings_of_each_view():
    words = ("--crop_scale", "0.2", "1", "0.5", "1", "--jitter", "0.8", "0", "--gray", "0.2", "0")
    assert "crop 0.2 1 / 0.5 1, flip 0, jitter 0.8 0 (0.4 0.4 0 0), gray 0.2 0, blur 0" in text_of("simclr", *words)
    assert "crop 0.3 1, flip 0, jitter 0.8 (0.4 0.4 0 0), gray 0, blur 0, solarize 0" in text_of("simclr")


def test_describe_tells_what_accumulation_does_not_enlarge():
    assert "64 images at a time" in text_of("simclr", "--batch_size", "64", "--accumulate", "2")
    assert "at a time" not in text_of("simclr")


def test_checkpoint_bytes_counts_parameters_buffers_and_moments():
    sgd, adamw = (build_method("simclr", Flat(12), 6, "--optimizer", name) for name in ("sgd", "adamw"))
    trained = 4 * sgd.trainable_parameters()
    state = sum(v.nbytes for v in sgd.state_dict().values())
    assert sgd.checkpoint_bytes() == state + trained
    assert adamw.checkpoint_bytes() == state + 2 * trained


def test_clip_grad_0_switches_the_clipping_of_a_method_off():
    assert plan_of("dino")[1].optimizer.clip_grad == 3
    assert plan_of("dino", "--clip_grad", "0")[1].optimizer.clip_grad is None


def test_plan_has_the_options_of_the_backbone():
    words = ("--patch_size", "4", "--drop_path", "0.1", "--pool", "avg")
    backbone = plan_of("simclr", *words)[1].backbone
    assert (backbone.patch_size, backbone.drop_path, backbone.pool) == (4, 0.1, "avg")
    assert "patches of 4 px, drop path 0.1, average of the tokens\n" in text_of("simclr", *words)
    assert "drop path" not in text_of("simclr")
    assert plan_of("simclr")[1].backbone.pool is None


@pytest.mark.parametrize(("method", "backbone", "told"), [
    ("nnclr", "test_vit", True), ("nnclr", "test_resnet", False), ("simclr", "test_vit", False),
])  # fmt: skip
def test_notes_tell_that_a_method_was_made_for_convolutional_networks(method, backbone, told):
    built = build_method(method, *build_backbone(BackboneConfig(backbone, "imagenet"), 32), "--batch_size", "32")
    args = parse_pretraining(TINY, METHODS, DATASETS)
    found = [note for note in notes(built.plan, args, built) if "for convolutional networks" in note]
    assert len(found) == told
    assert not told or "\n" not in found[0]
