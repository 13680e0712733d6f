"""The command line: strict, with the nearest known name; derived values in one place; recipes that parse_pretraining."""

import re
import shlex
from pathlib import Path

import pytest

from cli.evaluate import parse_evaluation
from cli.plan import describe, resolve
from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
from tests.helpers.commands import plan_of, small
from utils import hardware
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """imagenet100 resnet18 --data_folder /datasets --train_dir imagenet-100/train
    --val_dir imagenet-100/test --epochs 100 --optimizer sgd --scheduler warmup_cosine --lr 0.3
    --weight_decay 1e-4 --batch_size 128 --temperature 0.2 --gpus 0 1 --num_workers 8 --hidden_mlp 2048
    --name simclr --project contrastive_learning"""


def typed(text):
    return parse_pretraining(shlex.split(text), METHODS, DATASETS)


def refused(text):
    with pytest.raises(UserError) as e:
        typed(text)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_the_documented_command():
    args = typed(COMMAND)
    assert (args.method, args.gpus, args.temperature, args.hidden_mlp) == ("simclr", [0, 1], 0.2, 2048)


def test_the_documented_command_of_the_second_half():
    text = """imagenet100 resnet18 --data_folder /datasets --train_dir imagenet-100/train
        --val_dir imagenet-100/test --epochs 100 --optimizer sgd --scheduler step --lr 0.1 --lr_decay_steps 60 80
        --weight_decay 0 --batch_size 128 --gpus 0 1 --num_workers 10 --name simclr-linear-eval
        --pretrained_feature_extractor trained_models/RUN_ID --project contrastive_learning"""
    args = parse_evaluation(shlex.split(text), list(DATASETS), list(EVALUATIONS))
    assert (args.lr, args.lr_decay_steps, args.evaluation) == ([0.1], [60, 80], ["linear", "knn"])
    more = parse_evaluation([*shlex.split(text), "--evaluation", "all"], list(DATASETS), list(EVALUATIONS))
    assert set(EVALUATIONS) - set(more.evaluation) == {"cluster", "features", "transfer"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits resnet18 --learning_rate 1", "unknown argument --learning_rate"),
        ("digits resnet18 --temprature 0.1", "did you mean --temperature"),
        ("digits resnet18 --temp 0.1", "unknown argument --temp"),
        ("digits resnet18 --method nnclrr", "unknown method 'nnclrr' (did you mean nnclr"),
        ("cifar resnet18", "unknown dataset 'cifar' (did you mean cifar10"),
        ("digits resnet18 --queue_size 64", "--queue_size is a flag of --method nnclr, not of simclr"),
        ("digits resnet18 --temperature 0", "'0' given, a number above 0 needed"),
        ("digits resnet18 --batch_size -4", "'-4' given, a whole number from 1 needed"),
        ("digits resnet18 --num_workers -1", "'-1' given, a whole number from 0 needed"),
        ("digits resnet18 --on_bad_image ignore", "unknown on_bad_image 'ignore'; choose one of stop, skip"),
        ("digits resnet18 --epochs 0", "a whole number from 1 needed"),
        ("digits resnet18 --epochs 1.5", "a whole number from 1 needed"),
        ("digits resnet18 --flip 1.2", "a number from 0 to 1 needed"),
        ("digits resnet18 --lr nan", "a number above 0 needed"),
        ("digits resnet18 --crop_scale 0.9 0.1", "give the smaller share first"),
        ("digits resnet18 --blur 0 1 0", "one for each of the 2 large views of simclr"),
        ("digits resnet18 --method rotnet --blur 0 1", "one for each of the 1 large views of rotnet"),
        ("digits resnet18 --small_views 2 --blur 0 1 0 1", "with --small_views one more"),
        ("digits resnet18 --small_size 20", "--small_size does nothing without --small_views"),
        ("digits resnet18 --small_views 2 --small_size 40", "--small_size 40 is larger than --large_size 32"),
        ("digits resnet18 --small_views 2 --small_scale 0.3 0.1", "--small_scale 0.3 0.1: give the smaller"),
        ("digits resnet18 --small_views -1", "a whole number from 0 needed"),
        ("digits resnet18 --tau 0.9", "--tau is a flag of --method byol, not of simclr"),
        ("digits resnet18 --method byol --supervised", "--supervised is a flag of --method simclr, not of byol"),
        ("digits resnet18 --optimizer sgd --lars_eta 0.02", "--lars_eta does nothing without --optimizer lars"),
        ("digits resnet18 --optimizer adamw --momentum 0.8", "--momentum does nothing without"),
        ("digits resnet18 --lr_decay_steps 3", "--lr_decay_steps does nothing without --scheduler step"),
        ("digits resnet18 --scheduler step --warmup_epochs 3", "does nothing without --scheduler warmup_cosine"),
        ("digits resnet18 --method nnclr --no_predictor --pred_layers 3", "does nothing without a predictor"),
        ("digits resnet18 --jitter_strengths 1 1 1 0.7", "at most 0.5"),
        ("digits", "required: backbone"),
        ("digits resnet18 --gpus", "expected at least one argument"),
    ],
)
def test_mistakes_are_one_line_that_helps(text, message):
    assert message in refused(text)


def test_an_option_without_its_value_does_not_swallow_the_next():
    assert "--queue_size" in refused("digits resnet18 --method nnclr --queue_size --epochs 3")


def test_defaults_belong_to_method_and_data_set():
    assert typed("digits resnet18").large_size == 32
    assert typed("imagenet resnet18").large_size == 224
    assert typed("--epochs 3 digits resnet18").flip == 0.0
    assert typed("digits resnet18 --flip 0.5").flip == 0.5
    assert typed("digits resnet18").proj_dim == 128
    assert typed("digits resnet18 --method nnclr").proj_dim == 256


def test_small_views_move_the_scale_of_large_ones_unless_it_is_given():
    assert typed("imagenet resnet18").crop_scale == [0.2, 1.0]
    many = typed("imagenet resnet18 --small_views 6")
    assert (many.crop_scale, many.small_scale, many.large_size, many.small_size) == ([0.14, 1], [0.05, 0.14], 224, 96)
    assert typed("imagenet resnet18 --small_views 6 --crop_scale 0.3 1").crop_scale == [0.3, 1]
    assert (typed("cifar10 resnet18").large_size, typed("cifar10 resnet18").small_size) == (32, 18)
    assert typed("digits resnet18 --small_views 2").crop_scale == [0.3, 1.0], "tiny scans keep what suits them"


def test_every_method_shows_its_flags(capsys):
    for name in METHODS:
        with pytest.raises(SystemExit):
            typed(f"cifar10 resnet18 --method {name} --help")
        shown = capsys.readouterr().out
        assert f"method {name}" in shown
        assert "--proj_dim" in shown or name in ("clusterfit", "rotnet")
        assert re.search(r"--large_size .*default:\s+32", shown, re.DOTALL)


def test_no_two_methods_use_one_flag_for_two_things():
    types: dict[str, object] = {}
    for name in METHODS:
        args = vars(typed(f"digits resnet18 --method {name} {shlex.join(small(name))}"))
        for flag, value in args.items():
            assert isinstance(value, types.setdefault(flag, type(value))), flag  # type: ignore[arg-type]


def test_learning_rate_is_linear_in_the_global_batch():
    args = plan_of("simclr", "--lr", "0.3", "--batch_size", "64", "--accumulate", "2")
    assert args.global_batch == 128
    assert args.scaled_lr == pytest.approx(0.15)
    assert "0.3 x 128 / 256 = 0.15" in describe(args)
    assert args.lr == 0.3, "what was typed stays"


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
def test_lengths(words, steps, epochs, warmup):
    args = plan_of("simclr", "--batch_size", "64", *words)
    assert (args.total_steps, args.total_epochs, args.warmup_steps) == (steps, epochs, warmup)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "2000"], "1438 images, fewer than one global batch of 2000 .* lower --batch_size to 1438"),
        (["--batch_size", "1"], "--batch_size 1: .*at least 2"),
        (["--warmup_epochs", "200"], "--warmup_epochs 200 is .* steps of .* in all; lower it"),
    ],
)
def test_impossible_plans_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        plan_of("simclr", *words)


def test_gpus_that_are_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--gpus 0 1 asks for CUDA devices but this machine has none"):
        resolve(typed("digits resnet18 --gpus 0 1"), 1000, 1000, 10, "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="this machine has devices 0 to 1"):
        resolve(typed("digits resnet18 --gpus 0 2"), 1000, 1000, 10, "")


def test_a_launcher_says_how_many_processes(monkeypatch):
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    args = plan_of("simclr", "--batch_size", "16")
    assert (args.nodes, args.devices, args.processes, args.global_batch) == (2, 2, 4, 64)


@pytest.mark.parametrize(
    ("accelerator", "capabilities", "expected"),
    [("cpu", {"avx512_bf16": True}, "bf16-mixed"), ("cpu", {"amx_bf16": True}, "bf16-mixed"), ("cpu", {}, "32"),
     ("mps", {"avx512_bf16": True}, "32")],
)  # fmt: skip
def test_precision_is_what_the_hardware_has(monkeypatch, accelerator, capabilities, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    assert hardware.choose_precision(None, accelerator)[0] == expected
    assert hardware.choose_precision("32", accelerator) == ("32", "as given")


def test_half_precision_that_a_cpu_does_not_train_in_is_refused():
    assert hardware.choose_precision("16-mixed", "cuda") == ("16-mixed", "as given")
    with pytest.raises(UserError, match="16-mixed needs a GPU"):
        hardware.choose_precision("16-mixed", "cpu")


def test_a_dashboard_flag_without_the_dashboard_is_told():
    assert "do nothing without --wandb" in describe(plan_of("simclr", "--project", "mine"))
    assert "--wandb" not in describe(plan_of("simclr"))
    assert "--wandb" not in describe(plan_of("simclr", "--project", "mine", "--wandb"))


def test_knn_takes_no_more_neighbours_than_there_are():
    args = plan_of("simclr", "--batch_size", "8", "--knn_k", "20", "200", images=100)
    assert args.knn_ks == [20]
    assert "fewer labelled" in describe(args)


def commands(text, main="main_contrastive"):
    """Every pretraining (or judging) command of a shell file or a README, as words, with the defaults of a shell."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", joined)
    joined = re.sub(r"\$\{[^}]*\}|\$\w+", "FOLDER", joined)
    found = re.findall(rf"^\s*(?:srun |torchrun [^\n]*?)?(?:python3 )?{main}\.py ([^\n`|>]*)", joined, re.M)
    return [shlex.split(c) for c in found if "..." not in c and "RUN_ID" not in c and "--resume" not in c]


RECIPES = sorted((ROOT / "bash_files").rglob("*.sh"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipes_parse(path):
    found = [parse_pretraining(words, METHODS, DATASETS) for words in commands(path.read_text())]
    found += [parse_evaluation(words, list(DATASETS), list(EVALUATIONS))
              for words in commands(path.read_text(), "main_linear")]  # fmt: skip
    assert {args.dataset for args in found} == {path.parent.name}
    assert any(path.stem.startswith(args.method) for args in found if "method" in args)
    assert path.read_text().startswith("#"), "a recipe opens with what it is"


def test_documented_commands_parse():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [words for page in pages for words in commands(page.read_text())]
    assert len(found) >= 3
    for words in found:
        parse_pretraining(words, METHODS, DATASETS)
