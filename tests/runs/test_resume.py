"""The command of a resumed run."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backbones.build import choose_stem
from backbones.export import run_card
from backbones.load import Weights, check_classes, check_compatible, choose_size, initial_config, read_metadata, stem_of
from cli.plan import resolve
from cli.pretrain import parse_pretraining, parse_resumed
from data.datasets import DATASETS
from methods import METHODS
from runs.folder import record_extension
from runs.resume import LearningRateOfPlan, continued_plan, pop_resume_flag, read_run, resume_argv
from tests.helpers.commands import TEACHER, TINY, plan_of, small, tiny
from tests.helpers.disk import largest_file
from tests.helpers.mutations import apply, apply_to_json, json_mutations, mutations
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.optim import ScheduleConfig, build_scheduler, lr_factor
from utils.plan import BackboneConfig


def test_pop_resume_flag_leaves_the_other_arguments():
    assert pop_resume_flag(["a", "--resume", "RUN", "--epochs", "3"])[1] == ["a", "--epochs", "3"]
    assert str(pop_resume_flag(["--resume=RUN"])[0]) == "RUN"
    assert pop_resume_flag(["a", "b"]) == (None, ["a", "b"])
    with pytest.raises(UserError, match="--extend_schedule has no effect without --resume"):
        pop_resume_flag(["a", "b", "--extend_schedule", "stretch"])


def test_pop_resume_flag_auto_is_a_new_run_until_there_is_a_checkpoint(tmp_path):
    argv = ["digits", "resnet18", "--resume", "auto", "--run_id=r", "--output", str(tmp_path)]
    assert pop_resume_flag(argv) == (None, argv)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "last.ckpt").touch()
    assert pop_resume_flag(argv) == (tmp_path / "r", argv)
    with pytest.raises(UserError, match="--resume auto needs --run_id"):
        pop_resume_flag(["digits", "resnet18", "--resume=auto"])


def recorded_run(folder, *words, method="simclr", **plan_changes):
    """A folder with a checkpoint and the args.json of a small run; (folder, its plan)."""
    argv = [*tiny(method), "--method", method, *small(method, *words)]
    _, plan = plan_of(method, *words)
    folder.mkdir(exist_ok=True)
    (folder / "last.ckpt").touch()
    write_json(folder / "args.json", {"run": "1", "argv": argv, "plan": dataclasses.asdict(plan)})
    return folder, plan


def resumed(folder, *words, **changes):
    """(flags, plan) with which a run would go on after `--resume folder words`; changes: of the plan as it resolves."""
    recorded, argv = resume_argv(folder, list(words))
    started, argv = parse_resumed(recorded.argv, argv, METHODS, DATASETS)
    args = parse_pretraining(argv, METHODS, DATASETS)
    facts = plan_of("simclr")[1].training_set
    plan = dataclasses.replace(resolve(args, facts, choose_stem("auto", args.backbone, args.large_size)), **changes)
    plan = continued_plan(recorded, started, args, plan)
    record_extension(folder, args, plan, argv)
    return args, plan


def test_resume_argv_needs_a_run(tmp_path):
    with pytest.raises(UserError, match=r"no last\.ckpt"):
        resume_argv(tmp_path, [])
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"args\.json does not exist"):
        resume_argv(tmp_path, [])
    (tmp_path / "args.json").write_text('{"argv": ["digits", "resnet18"]')
    with pytest.raises(UserError, match=r"args\.json cannot be read"):
        resume_argv(tmp_path, [])


def test_resume_argv_appends_flags_or_takes_a_whole_command(tmp_path):
    folder, _ = recorded_run(tmp_path)
    argv = read_run(folder).argv
    assert resume_argv(folder, ["--gpus", "0"])[1] == [*argv, "--gpus", "0"]
    assert resume_argv(folder, ["digits", "resnet34"])[1] == ["digits", "resnet34"]
    auto = ["--resume", "auto", "digits", "resnet34"]
    assert resume_argv(folder, auto)[1] == auto


def test_resume_argv_lets_another_length_take_the_place_of_the_old_one(tmp_path):
    folder, _ = recorded_run(tmp_path, "--steps", "5", "--epochs=2", "--extend_schedule=stretch")
    longer = ["--epochs", "3"]
    assert not {"--steps", "5", "--extend_schedule=stretch"} & {*resume_argv(folder, longer)[1]}
    assert resume_argv(folder, ["--steps", "9"])[1].count("--steps") == 2, "the last one counts"


def test_continued_plan_refuses_what_changes_the_result(tmp_path):
    folder, plan = recorded_run(tmp_path, "--epochs", "3")
    assert resumed(folder, "--num_workers", "8")[1] == plan
    for words in (["--epochs", "9"], ["--lr", "2.0"]):
        with pytest.raises(UserError, match=f"{' '.join(words)} differs from the run's "):
            resumed(folder, *words)


def test_continued_plan_lists_every_difference_in_one_line(tmp_path):
    folder, plan = recorded_run(tmp_path, "--epochs", "3", "--lr", "0.1", "--log_every", "1", "--batch_size", "64")
    other = dataclasses.replace(plan.training_set, fingerprint="xyz")
    with pytest.raises(UserError) as e:
        resumed(folder, "--epochs", "9", "--lr", "0.2", "--log_every", "7", "--batch_size", "32", training_set=other)
    message = str(e.value)
    assert message.startswith("--epochs 9 differs from the run's 3, --lr 0.2 from 0.1; the training set changed")
    assert "; a global batch of 32 differs from the run's 64" in message
    assert "\n" not in message
    assert "log_every" not in message


def test_continued_plan_lets_auto_name_the_place_of_the_run_otherwise(tmp_path):
    folder, _ = recorded_run(tmp_path, "--run_id", "r", "--output", "a")
    recorded = read_run(folder)
    argv = [*recorded.argv, "--output", "/home/me/a"]
    resumed(folder, *argv, "--resume", "auto")
    with pytest.raises(UserError, match="--output"):
        resumed(folder, *argv)


def test_continued_plan_takes_the_same_global_batch_on_other_processes(tmp_path):
    folder, plan = recorded_run(tmp_path, "--batch_size", "64")
    two_processes = dataclasses.replace(plan.batch, batch_size=32, processes=2)
    resumed(folder, batch=two_processes)


def test_teacher_of_a_run_is_taken_from_its_plan_and_not_from_its_weights(tmp_path):
    folder, plan = recorded_run(tmp_path / "r", method="distill")
    content = read_json(folder / "args.json")
    teacher = BackboneConfig(TEACHER, "small")
    write_json(folder / "args.json", content | {"plan": content["plan"] | {"teacher": dataclasses.asdict(teacher)}})
    assert plan.teacher is None, "the weights decide on the stem"
    assert resumed(folder)[1].teacher == teacher


def factors(plan, steps):
    return [lr_factor(plan.schedule)(step) for step in steps]


def test_stretched_run_follows_the_schedule_of_the_new_length_with_the_warm_up_that_it_had(tmp_path):
    folder, begun = recorded_run(tmp_path, "--epochs", "20", "--batch_size", "128")
    _, plan = resumed(folder, "--epochs", "40", "--extend_schedule", "stretch")
    begun, total = begun.schedule, 2 * begun.schedule.total_steps
    assert (plan.schedule.total_steps, plan.schedule.warmup_steps) == (total, begun.warmup_steps)
    w = begun.warmup_steps
    expected = [(s + 1) / w if s < w else 0.5 * (1 + math.cos(math.pi * (s - w) / (total - w))) for s in range(total)]
    assert factors(plan, range(total)) == pytest.approx(expected, rel=1e-12)
    assert plan.schedule.position(total - 1) / plan.schedule.length == (total - 1) / total


@pytest.mark.parametrize("scheduler", ["warmup_cosine", "cosine", "step", "none"])
def test_constant_extension_keeps_the_schedule_and_then_its_last_value(tmp_path, scheduler):
    decay = ["--lr_decay_steps", "1", "3"] if scheduler == "step" else []
    folder, begun = recorded_run(tmp_path, "--epochs", "2", "--batch_size", "128", "--scheduler", scheduler, *decay)
    _, plan = resumed(folder, "--epochs", "4", "--extend_schedule", "constant")
    first, total = begun.schedule.total_steps, plan.schedule.total_steps
    assert total == 2 * first
    before = factors(begun, range(first))
    assert factors(plan, range(total + 1)) == [*before, *[before[-1]] * (first + 1)]
    assert plan.schedule.position(total) / plan.schedule.length == (first - 1) / first


def test_extension_is_recorded_and_the_run_goes_on_with_it(tmp_path):
    folder, begun = recorded_run(tmp_path, "--epochs", "2")
    _, constant = resumed(folder, "--epochs", "4", "--extend_schedule", "constant")
    assert resumed(folder)[1] == constant
    assert resumed(folder, "--epochs", "4", "--extend_schedule", "constant")[1] == constant, "the same command again"
    whole = [*TINY, *small("simclr"), "--epochs", "4", "--resume", "auto"]
    assert resumed(folder, *whole)[1] == constant
    with pytest.raises(UserError, match="to train longer, add --extend_schedule stretch or constant"):
        resumed(folder, "--epochs", "6")
    _, stretched = resumed(folder, "--steps", str(begun.schedule.total_steps * 3), "--extend_schedule", "stretch")
    assert stretched.schedule.length == stretched.schedule.total_steps == begun.schedule.total_steps * 3
    assert resumed(folder)[1] == stretched
    _, again = resumed(folder, "--epochs", "8", "--extend_schedule", "constant")
    assert (again.schedule.length, again.schedule.total_steps) == (stretched.schedule.length, 4 * begun.schedule.length)
    content = read_json(folder / "args.json")
    n = begun.schedule.total_steps
    assert [e["total_steps"] for e in content["extensions"]] == [[n, 2 * n], [2 * n, 3 * n], [3 * n, 4 * n]]
    assert [e["extend_schedule"] for e in content["extensions"]] == ["constant", "stretch", "constant"]
    assert content["run"] == "1"


def test_extension_that_is_none_is_refused(tmp_path):
    folder, _ = recorded_run(tmp_path, "--epochs", "3")
    for epochs in ("2", "1"):
        with pytest.raises(UserError, match="a run can be extended and not shortened"):
            resumed(folder, "--epochs", epochs, "--extend_schedule", "stretch")
    with pytest.raises(UserError, match="no effect without a longer --epochs or --steps"):
        resumed(folder, "--extend_schedule", "stretch")
    with pytest.raises(UserError, match="--lr 2.0 differs"):
        resumed(folder, "--epochs", "9", "--extend_schedule", "stretch", "--lr", "2")


def test_extension_keeps_the_defaults_of_the_first_length(tmp_path):
    folder, begun = recorded_run(tmp_path, "--epochs", "300", method="byol")
    args, plan = resumed(folder, "--epochs", "400", "--extend_schedule", "stretch")
    assert (args.tau, plan.optimizer) == (0.99, begun.optimizer)
    assert resumed(folder)[0].tau == 0.99
    with pytest.raises(UserError, match="--tau 0.5 differs from the run's 0.99"):
        resumed(folder, "--epochs", "500", "--extend_schedule", "stretch", "--tau", "0.5")


@pytest.mark.parametrize("method", ["byol", "mocov3"])
def test_longer_command_may_be_repeated_where_the_defaults_depend_on_the_length(tmp_path, method):
    folder, begun = recorded_run(tmp_path, "--epochs", "100", method=method)
    longer = ["--epochs", "1000", "--resume", "auto", "--extend_schedule", "stretch"]
    whole = [*tiny(method), "--method", method, *small(method), *longer]
    first, again = resumed(folder, *whole), resumed(folder, *whole)
    assert again[1] == first[1]
    assert (again[0].tau, again[1].optimizer) == (0.99, begun.optimizer)
    assert resumed(folder)[1] == first[1]
    with pytest.raises(UserError, match="--lr 7.0 differs from the run's "):
        resumed(folder, *whole, "--lr", "7")


@pytest.mark.parametrize("scheduler", ["warmup_cosine", "cosine"])
def test_extension_keeps_the_warm_up_where_only_a_longer_run_of_the_method_has_its_own(tmp_path, scheduler):
    flags = ["--scheduler", scheduler]
    folder, begun = recorded_run(tmp_path, "--epochs", "100", *flags, method="mae")
    longer = ["--epochs", "800", "--resume", "auto", "--extend_schedule", "stretch"]
    whole = [*tiny("mae"), "--method", "mae", *small("mae"), *flags, *longer]
    _, plan = resumed(folder, *whole)
    assert plan.schedule.warmup_steps == begun.schedule.warmup_steps
    assert resumed(folder, *whole)[1] == resumed(folder)[1] == plan
    if scheduler == "warmup_cosine":
        with pytest.raises(UserError, match="--warmup_epochs 40.0 differs from the run's 10.0"):
            resumed(folder, *whole, "--warmup_epochs", "40")


def test_extension_on_a_full_disk_leaves_the_run_as_it_was(tmp_path):
    folder, begun = recorded_run(tmp_path, "--epochs", "3")
    before = (folder / "args.json").read_text()
    with largest_file(1000), pytest.raises(UserError, match=r"cannot write .*args.json \(File too large\)"):
        resumed(folder, "--epochs", "9", "--extend_schedule", "stretch")
    assert (folder / "args.json").read_text() == before
    assert sorted(p.name for p in folder.iterdir()) == ["args.json", "last.ckpt"]


def test_learning_rate_of_the_plan_takes_the_place_of_that_of_the_checkpoint():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "scheduled": True}], lr=2.0)
    scheduler = build_scheduler(optimizer, ScheduleConfig("cosine", 10, 1))
    state = scheduler.state_dict() | {"last_epoch": 5}
    scheduler.load_state_dict(state)
    optimizer.param_groups[0]["lr"] = 0.0  # of the end of a shorter run
    trainer = SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)])
    LearningRateOfPlan().on_train_start(trainer, None)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    parent = tmp_path_factory.mktemp("runs")
    recorded_run(parent / "mutated", "--epochs", "3")
    return recorded_run(parent / "original", "--epochs", "3")[0]


def mutated_args_go_on_or_are_refused_in_one_line(original, text):
    """Write a text as the args.json of a run and resume it: an error of one line, or the plan of the run."""
    folder = original.parent / "mutated"
    (folder / "args.json").write_bytes(text)
    try:
        plan = resumed(folder)[1]
        card_of(folder)
    except UserError as e:
        return str(e)
    assert plan.schedule.total_steps > 0
    return None


def card_of(folder):
    """What an evaluation and an export of the run read there."""
    metadata = read_metadata(folder / "last.ckpt")
    weights = Weights(folder / "last.ckpt", {}, metadata)
    choose_size(None, [weights], 32)
    initial_config("auto", TINY[1], weights, 32)
    check_compatible(weights, TINY[1], "auto", stem_of("auto", TINY[1], weights, 32))
    check_classes("digits", metadata, 10, 10)
    run_card(weights, TINY[1], "imagenet", {}, "python3 train.py")


def check_fuzz(message):
    assert message is None or len(message.splitlines()) == 1
    assert message is None or "Traceback" not in message


@settings(max_examples=50, deadline=5000, derandomize=True)
@given(json_mutations())
def test_mutated_args_json_is_one_line_or_harmless(original, changes):
    content = apply_to_json(changes, read_json(original / "args.json"))
    check_fuzz(mutated_args_go_on_or_are_refused_in_one_line(original, json.dumps(content).encode()))


@settings(max_examples=50, deadline=5000, derandomize=True)
@given(mutations())
def test_args_json_with_mutated_bytes_is_one_line_or_harmless(original, changes):
    content = apply(changes, (original / "args.json").read_bytes())
    check_fuzz(mutated_args_go_on_or_are_refused_in_one_line(original, content))


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(json_mutations(), mutations() | st.just([]))
def test_thousands_of_mutated_args_json_are_one_line_or_harmless(original, changes, bytes_changed):
    content = json.dumps(apply_to_json(changes, read_json(original / "args.json"))).encode()
    check_fuzz(mutated_args_go_on_or_are_refused_in_one_line(original, apply(bytes_changed, content)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("argv", "digits resnet18", "argv is str, not list"),
        ("argv", ["digits", 18], "argv is not the command of a run"),
        ("argv", ["digits", "resnet18", "--help"], "argv is not the command of a run"),
        ("plan", None, "has no plan.batch.batch_size"),
        ("plan", {"schedule": []}, "has no plan.batch.batch_size"),
        ("plan.teacher", {"name": "resnet18"}, "has no plan.teacher.stem"),
        ("plan.teacher", "resnet18", "has no plan.teacher.name"),
        ("extensions", {}, "extensions is no list"),
    ],
)
def test_damaged_args_json_is_named_with_what_is_wrong(tmp_path, key, value, message):
    folder, _ = recorded_run(tmp_path)
    content = read_json(folder / "args.json")
    changed = {"plan": content["plan"] | {"teacher": value}} if key == "plan.teacher" else {key: value}
    write_json(folder / "args.json", content | changed)
    with pytest.raises(UserError, match=f"args.json is damaged: .*{message}"):
        resume_argv(folder, [])


@pytest.mark.parametrize("has_settings", [False, True])
def test_resume_argv_names_a_folder_with_a_line_break_in_one_line(tmp_path, has_settings):
    folder = tmp_path / "a\nb"
    folder.mkdir()
    if has_settings:
        (folder / "args.json").write_text("{}")
    with pytest.raises(UserError) as e:
        resume_argv(folder, [])
    assert len(str(e.value).splitlines()) == 1
    assert "a\\nb" in str(e.value)
