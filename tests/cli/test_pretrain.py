"""The command line of pretraining: strict flags, defaults of methods and data sets, recipes that parse."""

import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from cli.evaluate import _parser as evaluation_parser
from cli.evaluate import parse_evaluation
from cli.parser import check_used
from cli.pretrain import _parser, changed_pretraining_flags, method_args, parse_pretraining
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
from methods.base import Method
from tests.helpers.commands import flags_of, small
from utils.errors import UserError

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


def test_parse_pretraining_takes_the_documented_command():
    args = typed(COMMAND)
    assert (args.method, args.gpus, args.temperature, args.hidden_mlp) == ("simclr", [0, 1], 0.2, 2048)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits resnet18 --learning_rate 1", "unknown argument --learning_rate"),
        ("digits resnet18 --temprature 0.1", "did you mean --temperature"),
        ("digits resnet18 --temp 0.1", "unknown argument --temp (did you mean --temperature?)"),
        ("digits resnet18 --method nnclrr", "unknown method 'nnclrr' (did you mean nnclr"),
        ("cifar resnet18", "unknown dataset 'cifar' (did you mean cifar10"),
        ("digits resnet18 --queue_size 64", "--queue_size is a flag of --method "),
        ("digits resnet18 --temperature 0", "got '0', needs a number above 0"),
        ("digits resnet18 --batch_size -4", "got '-4', needs a whole number from 1"),
        ("digits resnet18 --num_workers -1", "got '-1', needs a whole number from 0"),
        ("digits resnet18 --on_bad_image ignore", "unknown on_bad_image 'ignore'; choose one of stop, skip"),
        ("digits resnet18 --epochs 0", "needs a whole number from 1"),
        ("digits resnet18 --epochs 1.5", "needs a whole number from 1"),
        ("digits resnet18 --flip 1.2", "needs a number from 0 to 1"),
        ("digits resnet18 --lr inf", "needs a number above 0 to 1.79769e"),
        ("digits resnet18 --seed 4294967296", "got '4294967296', needs a whole number from 0 to 4,294,967,295"),
        ("digits resnet18 --lr nan", "needs a number above 0"),
        ("digits resnet18 --crop_scale 0.9 0.1", "the minimum is larger than the maximum"),
        ("digits resnet18 --blur 0 1 0", "one for each of the 2 large views of simclr"),
        ("digits resnet18 --method rotnet --blur 0 1", "one for each of the 1 large views of rotnet"),
        ("digits resnet18 --small_views 2 --blur 0 1 0 1", "with --small_views one more"),
        ("digits resnet18 --small_size 20", "--small_size has no effect without --small_views"),
        ("digits resnet18 --small_views 2 --small_size 40", "--small_size 40 is larger than --large_size 32"),
        ("digits resnet18 --small_views 2 --small_scale 0.3 0.1", "--small_scale 0.3 0.1: the minimum is larger"),
        ("digits resnet18 --small_views -1", "needs a whole number from 0"),
        ("digits resnet18 --tau 0.9", "--tau is a flag of --method byol"),
        ("digits resnet18 --method byol --supervised", "--supervised is a flag of --method simclr, not of byol"),
        ("digits resnet18 --optimizer sgd --lars_eta 0.02", "--lars_eta has no effect without --optimizer lars"),
        ("digits resnet18 --optimizer adamw --momentum 0.8", "--momentum has no effect without"),
        ("digits resnet18 --optimizer adamw --momentum 0.9", "--momentum has no effect without"),
        ("digits resnet18 --optimizer sgd --lars_eta 0.001", "--lars_eta has no effect without"),
        ("digits resnet18 --offline", "--offline has no effect without --wandb"),
        ("digits resnet18 --accelerator cpu --gpus 0", "--gpus has no effect without --accelerator auto or cuda"),
        ("digits resnet18 --method SimCLR", "unknown method 'SimCLR' (did you mean simclr?)"),
        ("digits resnet18 --devices 2", "unknown argument --devices (did you mean --gpus?)"),
        ("digits resnet18 --decay_norms --weight_decay 0", "has no effect without a --weight_decay above 0"),
        ("digits resnet18 --lr_decay_steps 3", "--lr_decay_steps has no effect without --scheduler step"),
        ("digits resnet18 --scheduler step --warmup_epochs 3", "has no effect without --scheduler warmup_cosine"),
        ("digits resnet18 --method nnclr --no_predictor --pred_layers 3", "has no effect without a predictor"),
        ("digits resnet18 --method byol --queue_size 64", "--queue_size has no effect without --neighbours"),
        ("digits resnet18 --method simsiam --queue_size 65536", "--queue_size has no effect without --neighbours"),
        ("digits resnet18 --decoupled_weights", "--decoupled_weights has no effect without --decoupled"),
        ("digits resnet18 --method lejepa --center_views all", "--center_views has no effect without --small_views"),
        ("digits resnet18 --method nnclr --push_views 3", "--push_views"),
        ("digits resnet18 --jitter_strengths 1 1 1 0.7", "at most 0.5"),
        ("digits resnet18 --jitter_strengths 1 1 1 0.1 1 1 1 0.7", "got hue 0.7, needs at most 0.5"),
        ("digits resnet18 --jitter_strengths 1 1 1", "got 3 numbers, needs BRIGHTNESS CONTRAST SATURATION HUE for all"),
        ("digits resnet18 --jitter 0.5 0.5 0", "--jitter: got 3 numbers, needs P for all views, or one for each of"),
        ("digits resnet18 --gray 0 1 0 1", "--gray: got 4 numbers"),
        ("digits resnet18 --gray 0.2 abc", "--gray: got 'abc', needs a number from 0 to 1"),
        ("digits resnet18 --crop_scale 0.5", "--crop_scale: got 1 numbers, needs MIN MAX for all views, or one for"),
        ("digits resnet18 --crop_scale 0.1 1 0.2", "--crop_scale: got 3 numbers"),
        ("digits resnet18 --small_views 2 --crop_scale 0.1 1 0.2 1 0.3 1", "--crop_scale: got 6 numbers"),
        ("digits resnet18 --crop_scale 0.1 1 0.9 0.2", "--crop_scale 0.9 0.2: the minimum is larger"),
        ("digits resnet18 --drop_path 1", "got '1', needs a number from 0 to 0.99"),
        ("digits resnet18 --patch_size 0", "needs a whole number from 1"),
        ("digits resnet18 --pool max", "unknown pool 'max'; choose one of token, avg"),
        ("digits", "required: BACKBONE"),
        ("digits resnet18 --gpus", "expected at least one argument"),
    ],
)
def test_parse_pretraining_refuses_a_mistake_with_one_line(text, message):
    assert message in refused(text)


def test_parse_pretraining_does_not_take_a_flag_for_a_value():
    assert "--queue_size" in refused("digits resnet18 --method nnclr --queue_size --epochs 3")


def test_defaults_depend_on_method_and_data_set():
    assert typed("digits resnet18").large_size == 32
    assert typed("imagenet resnet18").large_size == 224
    assert typed("--epochs 3 digits resnet18").flip == 0.0
    assert typed("digits resnet18 --flip 0.5").flip == 0.5
    assert typed("digits resnet18").proj_dim == 128
    assert typed("digits resnet18 --method nnclr").proj_dim == 256


def test_small_views_change_the_default_crop_scale():
    assert typed("imagenet resnet18").crop_scale == [0.08, 1.0]
    many = typed("imagenet resnet18 --small_views 6")
    assert (many.crop_scale, many.small_scale, many.large_size, many.small_size) == ([0.14, 1], [0.05, 0.14], 224, 96)
    assert typed("imagenet resnet18 --small_views 6 --crop_scale 0.3 1").crop_scale == [0.3, 1]
    assert (typed("cifar10 resnet18").large_size, typed("cifar10 resnet18").small_size) == (32, 18)
    assert typed("digits resnet18 --small_views 2").crop_scale == [0.3, 1.0], "tiny scans keep what suits them"


def test_each_large_view_may_have_its_own_settings():
    args = typed("digits resnet18 --small_views 2 --jitter 0.8 0 --gray 0.2 0 0.1 --crop_scale 0.2 1 0.5 1")
    assert (args.jitter, args.gray, args.crop_scale) == ([0.8, 0.0], [0.2, 0.0, 0.1], [0.2, 1.0, 0.5, 1.0])
    assert typed("digits resnet18 --jitter_strengths 1 1 1 0.2 0 0 0 0").jitter_strengths[3:] == [0.2, 0, 0, 0, 0]


def test_default_values_of_small_views_need_small_views():
    class Asymmetric(Method):
        @staticmethod
        def add_args(parser):
            parser.set_defaults(jitter=[0.8, 0.0, 0.5], gray=[0.2, 0.0])

    def parsed(text):
        return parse_pretraining(shlex.split(f"digits resnet18 {text}"), {"simclr": Asymmetric}, DATASETS)

    assert parsed("").jitter == [0.8, 0.0]
    assert parsed("--small_views 1").jitter == [0.8, 0.0, 0.5]
    assert parsed("").gray == [0.0], "the digits are gray already"
    with pytest.raises(UserError, match="--jitter: got 3 numbers"):
        parsed("--jitter 0.8 0 0.5")


@pytest.mark.parametrize(
    "text",
    [
        "--jitter 0.5 --gray 0.5 digits resnet18",
        "--gray 0.5 --crop_scale 0.5 1.0 digits --jitter 0.5 resnet18",
        "digits --jitter 0.5 resnet18 --gray 0.5",
        "--epochs 100 --gray 0.5 digits resnet18 --jitter 0.5",
        "--jitter 0.5 digits --gray 0.5 resnet18",
    ],
)
def test_data_set_and_backbone_may_follow_a_flag_of_several_numbers(text):
    args = typed(text)
    assert (args.dataset, args.backbone, args.jitter, args.gray) == ("digits", "resnet18", [0.5], [0.5])


def test_help_shows_the_flags_and_defaults_of_each_method(capsys):
    for name in METHODS:
        with pytest.raises(SystemExit):
            typed(f"cifar10 resnet18 --method {name} --help")
        shown = capsys.readouterr().out
        assert f"method {name}" in shown
        assert all(flag in shown for flag in flags_of(name))
        assert re.search(r"--large_size .*default:\s+32", shown, re.DOTALL)


def test_help_shows_a_default_for_every_flag_of_every_method():
    parsers = {name: _parser(name, METHODS, DATASETS, {}) for name in METHODS}
    parsers["evaluation"] = evaluation_parser(list(DATASETS), EVALUATIONS)
    for name, parser in parsers.items():
        flags = [action for action in parser._actions if action.option_strings and not action.required]
        texts = {action.dest: parser._get_formatter()._expand_help(action) for action in flags if action.dest != "help"}
        assert [flag for flag, text in texts.items() if "default" not in text] == [], name


def test_a_flag_has_one_type_over_all_methods():
    types: dict[str, object] = {}
    for name in METHODS:
        args = vars(typed(f"digits resnet18 --method {name} {shlex.join(small(name))}"))
        for flag, value in args.items():
            if value is not None:  # not set
                assert isinstance(value, types.setdefault(flag, type(value))), flag  # type: ignore[arg-type]


def test_method_args_holds_only_the_flags_of_the_method():
    args = method_args(typed("digits resnet18 --method nnclr --queue_size 64"), METHODS)
    assert args.queue_size == 64
    assert not {"lr", "epochs", "batch_size", "dataset", "method"} & vars(args).keys()


def test_help_groups_the_most_used_flags_first(capsys):
    with pytest.raises(SystemExit):
        typed("digits resnet18 --help")
    shown = capsys.readouterr().out
    titles = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[:4] == ["positional arguments:", "options:", "common:", "method simclr:"]
    assert shown.index("--method") < shown.index("--epochs") < shown.index("--lars_eta") < shown.index("--wandb")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits resnet18", {}),
        ("digits resnet18 --method byol --epochs 100", {"--method": ("byol", "simclr")}),
        ("digits resnet18 --lr 0.5 --seed 0", {"--lr": (0.5, 0.3)}),
        ("cifar10 resnet18 --checkpoint_every 5m", {"--checkpoint_every": ((300, "seconds"), (1, "epochs"))}),
        ("imagenet resnet18 --method byol --small_views 2", {"--method": ("byol", "simclr"), "--small_views": (2, 0)}),
    ],
)
def test_changed_flags_are_those_that_differ_from_the_defaults_of_the_method_and_the_data_set(text, expected):
    assert changed_pretraining_flags(shlex.split(text), METHODS, DATASETS) == expected


def test_output_and_record_may_start_with_the_home_folder():
    """As a file of --config and --output=~/x give them: the shell expands only a ~ that begins a word."""
    for args in (
        typed("digits resnet18 --output=~/runs --record '~/ledger'"),
        parse_evaluation(shlex.split("digits resnet18 --pretrained_feature_extractor w --output=~/runs "
                                     "--record=~/ledger"), list(DATASETS), EVALUATIONS),
    ):  # fmt: skip
        assert (args.output, args.record) == (str(Path.home() / "runs"), str(Path.home() / "ledger"))
    assert typed("digits resnet18").record is None
    message = refused("digits resnet18 --output=~nobody-of-this-name/x")
    assert message.startswith("--output or --record: ~nobody-of-this-name/x cannot be found (")


def test_switch_that_is_off_by_default_may_be_typed_as_off_where_it_has_no_effect():
    assert typed("digits resnet18 --offline=false --lars_clip=false --optimizer sgd").offline is False
    with pytest.raises(UserError, match="--offline has no effect without --wandb"):
        typed("digits resnet18 --offline")
    words = shlex.split(
        "digits resnet18 --pretrained_feature_extractor w --export timm f --baselines=false --offline=false"
    )
    assert parse_evaluation(words, list(DATASETS), EVALUATIONS).offline is False


def test_switch_that_is_on_by_default_must_have_an_effect_to_be_typed_as_off():
    args = Namespace(shuffle=False, wandb=False)
    rules = ((("shuffle",), "--wandb", lambda a: a.wandb),)
    with pytest.raises(UserError, match="--shuffle has no effect without --wandb"):
        check_used(args, {"shuffle"}, rules, {"shuffle": True})
    check_used(args, {"shuffle"}, rules, {"shuffle": False})
