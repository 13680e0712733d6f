"""Tests of the command line of evaluation and export."""

import re
import shlex

import pytest

from cli.evaluate import changed_evaluation_flags, parse_evaluation
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from utils.errors import UserError

DOCUMENTED = """imagenet100 resnet18 --data_folder /datasets --train_dir imagenet-100/train
    --val_dir imagenet-100/test --epochs 100 --optimizer sgd --scheduler step --lr 0.1 --lr_decay_steps 60 80
    --weight_decay 0 --batch_size 128 --gpus 0 1 --num_workers 10 --name simclr-linear-eval
    --pretrained_feature_extractor trained_models/RUN_ID --project contrastive_learning"""


def parse(text):
    argv = shlex.split(text)
    if "--pretrained_feature_extractor" not in argv:
        argv = ["digits", "resnet18", "--pretrained_feature_extractor", "w", *argv]
    return parse_evaluation(argv, list(DATASETS), EVALUATIONS)


def test_parse_evaluation_reads_the_documented_command():
    args = parse(DOCUMENTED)
    assert (args.lr, args.lr_decay_steps, args.evaluation) == ([0.1], [60, 80], ["linear", "knn"])
    assert (args.gpus, args.batch_size, args.num_workers, args.project) == ([0, 1], 128, 10, "contrastive_learning")


def test_parse_evaluation_resolves_the_names():
    assert parse("--evaluation quality knn").evaluation == ["quality", "knn"]
    assert set(EVALUATIONS) - set(parse("--evaluation all").evaluation) == {"cluster", "features", "similar"}
    assert parse("--similar a.jpg b.jpg").evaluation == ["similar"]
    assert parse("--similar a.jpg --evaluation knn").evaluation == ["knn", "similar"]
    assert parse("--similar a.jpg --evaluation all").evaluation == [*parse("--evaluation all").evaluation, "similar"]
    assert parse("--export timm f.pth").evaluation == []
    assert [parse(text).named for text in ("", "--evaluation all", "--evaluation all knn")] == [[], [], ["knn"]]
    assert parse("--export timm f.pth --evaluation knn").evaluation == ["knn"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--evaluation cluster --num_clusters 5", "--evaluation cluster needs --num_clusters and --cluster_output"),
        ("--evaluation cluster --num_clusters 5 --cluster_output c.npz --baselines", "cluster takes one backbone"),
        ("--export hub", "--export needs 2 values after it: FORMAT FILE; see --help"),
        ("--evaluation knn --pca 5", "--pca has no effect without --evaluation cluster"),
        ("--evaluation knn --lr 1", "--lr has no effect without --evaluation linear or finetune"),
        (
            "--evaluation knn --label_fraction 0.1",
            "--label_fraction has no effect without --evaluation linear or logistic or finetune",
        ),
        ("--evaluation linear --knn_k 5", "--knn_k has no effect without --evaluation knn"),
        ("--evaluation knn --shots 5", "--shots has no effect without --evaluation fewshot"),
        ("--evaluation knn --embedding pca", "--embedding has no effect without --evaluation pictures"),
        ("--evaluation knn --features_dir d", "--features_dir has no effect without --evaluation features or cluster"),
        ("--optimizer adamw --momentum 0.5", "--momentum has no effect without --optimizer sgd or lars"),
        ("--lars_clip", "--lars_clip has no effect without --optimizer lars"),
        ("--lr_decay_steps 3", "--lr_decay_steps has no effect without --scheduler step"),
        ("--export timm f --evaluation knn --layer layer2", "--export writes the whole backbone"),
        ("--export timm f --evaluation knn --last_blocks 4", "--export writes the whole backbone, --last_blocks"),
        ("--evaluation knn --layer layer2 --last_blocks 4", "--layer and --last_blocks both choose the features"),
        ("--export timm f --last_blocks 4", "--last_blocks has no effect without an evaluation"),
        ("--export timm f --layer layer2", "--layer has no effect without an evaluation"),
        ("--export timm f --baselines", "--baselines has no effect without an evaluation"),
        ("--entity me", "--entity has no effect without --wandb"),
        ("--offline", "--offline has no effect without --wandb"),
        ("--accelerator cpu --gpus 0", "--gpus has no effect without --accelerator"),
        ("--evaluation similar", "--evaluation similar needs --similar; add them"),
        ("--similar a.jpg --baselines", "--evaluation similar takes one backbone; name one, without --baselines"),
        ("--evaluation knn --similar_k 3", "--similar_k has no effect without --evaluation similar"),
        ("--evaluation cluster --features_format parquet", "--features_format has no effect without --eval.* features"),
        ("--evaluation kn", r"unknown evaluation 'kn' \(did you mean knn\?\)"),
        ("--evaluation probe", "unknown evaluation 'probe'; choose one of all, linear, knn"),
        ("digits resnet18 --pretrained_feature_extractor a b --export timm f", "--export writes one backbone"),
    ],
)
def test_parse_evaluation_refuses_flags_that_would_be_ignored(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("--evaluation knn --lr 0.1 0.3 1.0 3.0 10.0 30.0", "lr"),
        ("--evaluation linear --draws 5", "draws"),
        ("--evaluation knn --embedding tsne", "embedding"),
        ("--optimizer adamw --momentum 0.9", "momentum"),
        ("--scheduler cosine --lr_decay_steps 60 80", "lr_decay_steps"),
    ],
)
def test_parse_evaluation_refuses_an_ignored_flag_with_its_default_value(text, flag):
    with pytest.raises(UserError, match=f"--{flag} has no effect without"):
        parse(text)


def test_help_groups_flags_by_the_evaluations_that_read_them(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    titles = re.findall(r"^([\w ,]+):$", shown, re.MULTILINE)
    assert titles.index("common") < titles.index("evaluation linear and finetune") < titles.index("evaluation knn")
    assert titles.index("evaluation knn") < titles.index("data loading") < titles.index("logging")
    for name in EVALUATIONS:
        assert f"{name}:" in shown


@pytest.mark.parametrize(
    ("text", "flag", "value"),
    [
        ("--evaluation cluster --num_clusters 5 --cluster_output c.npz --features_dir d --pca 3", "pca", 3),
        ("--evaluation finetune --optimizer lars --lars_clip", "lars_clip", True),
        ("--evaluation features --features_dir d", "features_dir", "d"),
    ],
)
def test_parse_evaluation_accepts_the_flags_of_a_named_evaluation(text, flag, value):
    assert vars(parse(text))[flag] == value


def test_changed_flags_of_an_evaluation():
    argv = shlex.split("digits resnet18 --pretrained_feature_extractor w --evaluation knn --seed 3")
    changed = changed_evaluation_flags(argv, list(DATASETS), EVALUATIONS)
    expected = {"--pretrained_feature_extractor": (["w"], None), "--evaluation": (["knn"], None), "--seed": (3, 0)}
    assert changed == expected
