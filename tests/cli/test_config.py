"""--config: flags from a file."""

import json
import shlex

import pytest

from cli.evaluate import evaluation_words, parse_evaluation
from cli.pretrain import parse_pretraining, pretraining_words
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
from utils.errors import UserError

YAML = """
dataset: digits
backbone: resnet18
method: nnclr        # a comment
epochs: 7
lr: 1e-4
crop_scale: [0.3, 1.0]
jitter:
  - 0.5
no_predictor: true
wandb: true
offline: true
seed: null
"""


@pytest.fixture
def file(tmp_path):
    def write(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def words(text):
    return pretraining_words(shlex.split(text), METHODS, DATASETS)


def typed(text):
    return parse_pretraining(words(text), METHODS, DATASETS)


def refused(text):
    with pytest.raises(UserError) as e:
        typed(text)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_yaml_gives_flags_as_the_command_line_does(file):
    path = file(YAML)
    args = typed(f"--config {path}")
    same = typed("digits resnet18 --method nnclr --epochs 7 --lr 1e-4 --crop_scale 0.3 1 --jitter 0.5 --no_predictor "
                 "--wandb --offline")  # fmt: skip
    assert vars(args) == vars(same)
    assert args.seed == 0, "null is not set"


def test_flags_of_the_command_line_win(file):
    path = file("dataset: digits\nbackbone: resnet18\nepochs: 7\nwandb: true\nlr: 1\ncrop_scale: [0.3, 1]\n")
    args = typed(f"cifar10 resnet50 --config {path} --lr 2 --wandb=false --crop_scale 0.5 1")
    assert (args.dataset, args.backbone, args.lr, args.wandb) == ("cifar10", "resnet50", 2.0, False)
    assert (args.crop_scale, args.epochs) == ([0.5, 1.0], 7)
    assert typed(f"cifar10 --config {path}").backbone == "resnet18"
    assert typed(f"--config={path} --epochs 3").epochs == 3


def test_epochs_of_the_command_line_take_the_place_of_steps_of_the_file(file):
    path = file("dataset: digits\nbackbone: resnet18\nsteps: 700\n")
    assert typed(f"--config {path} --epochs 3").steps is None
    assert typed(f"--config {path} --steps 3").steps == 3


def test_arguments_are_complete_without_the_file(file):
    path = file("dataset: digits\nbackbone: resnet18\nepochs: 7\n")
    assert words(f"--config {path} --lr 2") == ["digits", "resnet18", "--epochs=7", "--lr=2"]
    assert words("digits resnet18 --lr 2") == ["digits", "resnet18", "--lr", "2"]


def test_args_json_of_a_run_gives_the_flags_of_its_command(file, tmp_path):
    argv = ["--epochs", "3", "digits", "resnet18", "--run_id", "r", "--method=nnclr", "--checkpoint_every", "15m"]
    file(json.dumps({"argv": argv, "flags": {}}), "args.json")
    for path in (tmp_path, tmp_path / "args.json"):
        args = typed(f"--config {path} --epochs 4")
        assert (args.dataset, args.method, args.epochs, args.run_id) == ("digits", "nnclr", 4, None)
        assert args.checkpoint_every == (900.0, "seconds")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("temprature: 1", "config.yaml: unknown argument --temprature (did you mean --temperature?)"),
        ("learning_rate: 1", "(did you mean --lr?)"),
        ("queue_size: 64", "config.yaml: --queue_size is a flag of --method "),
        ("lr: [", "cannot be read"),
        ("- lr", "holds no `flag: value`"),
        ("", "holds no `flag: value`"),
        ("optimizer:\n  name: lars", "line 1: optimizer has entries of its own"),
        ("lr: 1\nlr: 2", "line 2: lr comes twice"),
        ("config: other.yaml", "names another --config"),
        ("lr: fast", "--lr: got 'fast', needs a number above 0"),
        ("wandb: 3", "--wandb: got '3', needs true or false"),
        ("method: nnclrr", "unknown method 'nnclrr' (did you mean nnclr"),
        ("optimizer: adamw\nmomentum: 0.9", "--momentum has no effect without"),
    ],
)
def test_config_with_a_mistake_is_refused_with_one_line(file, content, message):
    assert message in refused(f"digits resnet18 --config {file(content)}")


@pytest.mark.parametrize("line", ["lr: [0.1, 0.2]", "lr: []", "wandb: [true]", "lr: [0.1]"])
def test_list_for_a_flag_of_one_value_is_refused(file, line):
    path = file(f"dataset: digits\nbackbone: resnet18\n{line}")
    name = line.partition(":")[0]
    for before in ("", "digits resnet18 "):
        message = refused(f"{before}--config {path}")
        assert message == f"{path}: {name} is a list, and --{name} takes one value; write it without brackets"


@pytest.mark.parametrize("line", ["dataset: [digits, cifar10]", "backbone: [resnet18]"])
def test_list_for_data_set_or_backbone_is_refused(file, line):
    path = file(line)
    assert f"{path}: {line.partition(':')[0]} is a list" in refused(f"digits resnet18 --config {path}")


def test_config_that_does_not_exist_and_two_of_them_are_refused(file, tmp_path):
    assert "none.yaml does not exist; name a YAML file" in refused(f"--config {tmp_path}/none.yaml")
    assert "does not exist" in refused(f"--config {tmp_path}/none.json")
    path = file("lr: 1")
    assert "--config names 2 files" in refused(f"digits resnet18 --config {path} --config {path}")


def test_config_of_an_evaluation(file):
    path = file("dataset: digits\nbackbone: resnet18\npretrained_feature_extractor: w\nevaluation: [knn, logistic]\n")
    argv = evaluation_words(["--config", str(path), "--seed", "3"], list(DATASETS), EVALUATIONS)
    args = parse_evaluation(argv, list(DATASETS), EVALUATIONS)
    assert (args.dataset, args.pretrained_feature_extractor, args.evaluation) == ("digits", ["w"], ["knn", "logistic"])
    assert args.seed == 3
