"""Commands with mutated words: each is resolved into a plan, or refused with one line; nothing else ever happens."""

import contextlib
import dataclasses
import functools
import io
import json
import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbones.build import choose_stem
from backbones.load import find_weights
from cli.evaluate import parse_evaluation
from cli.plan import dashboard_config, data_source, describe, notes, resolve
from cli.pretrain import method_args, parse_pretraining, parse_resumed
from data.datasets import DATASETS, read_dataset
from evaluation.evaluations import EVALUATIONS, resolve_settings
from methods import METHODS
from runs.folder import create_run_folder, new_run_id, release_folders
from runs.resume import pop_resume_flag, resume_argv
from tests.helpers.fuzzing import Fuzzing
from tests.helpers.images import read
from utils.hardware import choose_hardware
from utils.plan import TrainingSet

stem = functools.cache(choose_stem)  # it builds a network
FACTS = TrainingSet("digits", 1438, 1438, 10, "0" * 16)
PRETRAINING = [
    *(f"digits resnet18 --method {method} --epochs 20" for method in METHODS if method != "clusterfit"),
    "custom vit_tiny_patch16_224 --data_folder gone --train_dir a --small_views 2 --small_size 96 --blur 1 0.1 0",
    "digits resnet50 --optimizer lars --lars_clip --scheduler step --lr_decay_steps 3 5 --steps 300 --accumulate 2",
    "imagenet resnet18 --supervised --accelerator cpu --precision bf16-mixed --run_id RUN --name N --seed 3 --gpus 0",
    "digits resnet18 --method clusterfit --cluster_file clusters.npz --shuffle_clusters --wandb --project P --offline",
    "digits resnet18 --method nnclr --queue_size 500 --knn_k 5 20 --knn_every 0 --log_every 1 --deterministic",
    "digits resnet18 --pretrained_feature_extractor W --dry_run --remove_prefix a --skip_layers b c",
    "--resume RUN", "--resume auto --run_id RUN", "digits resnet18 --resume=auto --run_id=RUN --output=OUT",
]  # fmt: skip
EVALUATION = [
    "digits resnet18 --pretrained_feature_extractor RUN --evaluation logistic knn --knn_k 5 --baselines",
    "digits resnet18 --pretrained_feature_extractor A B --evaluation all --output OUT --run_id R",
    "custom resnet18 --pretrained_feature_extractor A --evaluation fewshot --shots 1 5 --data_folder d --val_dir v",
    "digits resnet18 --pretrained_feature_extractor A --evaluation finetune linear --epochs 3 --lr 0.1",
    "digits resnet18 --pretrained_feature_extractor A --evaluation cluster --num_clusters 10 --cluster_output c.npz",
    "digits resnet18 --pretrained_feature_extractor A --export timm file --large_size 32",
]
NUMBERS = [
    "-1", "0", "-0", "00", "1", "2", "8", "0.5", "nan", "inf", "-inf", "1e400", "1e-400", "-1e-9", "1e308", "9" * 19,
    "9" * 400, "9" * 5000, "0x10", "1_0", "\u0661", "1.5", ".5", "5.", "+3", "4294967295", "4294967296",
]  # fmt: skip
HOSTILE = [
    "", " ", "-", "--", "---", "=", "--=", "\u00e9", "\udcff", "\udcff/x", "a\nb", "a\tb", "\u2028", "../../x", "/",
    "..", ".", "/etc/passwd", "~", "~nobody-here/x", "$(touch x)", "`touch x`", "%s%n%(prog)s", "{0}", "@args",
    "A" * 300, "None", "True", "auto", "all", "--help", "-h", "--lr=", "--lr=nan", "--lr=1", "--resume=",
    "--run_id=../x", "--name=/x", "--output=", "resnet18 ", "RESNET18", "hf_hub:a/b", "\U0001f600", "cuda", "cpu",
    "adamw", "cosine", "nnclr",
]  # fmt: skip


def flags_of(add_flags) -> list[str]:
    parser = ArgumentParser(add_help=False)
    add_flags(parser)
    return [option for action in parser._actions for option in action.option_strings]


def all_flags() -> list[str]:
    """Every flag of every method and evaluation, and those of the commands above."""
    functions: list = [m.add_args for m in METHODS.values()]
    functions += [f for evaluation in EVALUATIONS.values() for f in evaluation.flags]
    shared = {word for command in PRETRAINING + EVALUATION for word in command.split() if word.startswith("--")}
    return sorted(shared.union(*map(flags_of, functions)))


def commands(bases: list[str]):
    """A valid command with up to three mutations of its words."""
    flags = st.sampled_from(all_flags())
    words = st.sampled_from(HOSTILE) | st.sampled_from(NUMBERS) | flags | st.text(max_size=12)
    place = st.integers(2, 30) | st.integers(0, 30)  # dataset and backbone come first, and most mutations end there
    what = st.sampled_from(["flag", "flag", "flag", "set", "insert", "delete", "repeat", "cut", "join"])
    mutations = st.lists(st.tuples(what, place, flags, words), max_size=3)
    return st.tuples(st.sampled_from(bases), mutations).map(lambda pair: mutated(*pair))


def mutated(base: str, mutations) -> list[str]:
    argv = shlex.split(base)
    for what, place, flag, word in mutations:
        at = place % (len(argv) + 1)
        if what == "flag":
            argv += [flag, word]
        elif what == "insert":
            argv.insert(at, word)
        elif at < len(argv):
            changed = {"set": [word], "delete": [], "repeat": [argv[at]] * 2, "join": [argv[at] + word]}
            argv[at : at + 1] = changed.get(what, [argv[at][: place % 7]])
    return [word.replace("\0", "0") for word in argv]  # no shell can pass a zero byte


def pretrain(argv: list[str], output: Path) -> None:
    """What the command does before it reads images and builds networks."""
    resume, argv = pop_resume_flag(argv)
    if resume:
        recorded, argv = resume_argv(resume, argv)
        _, argv = parse_resumed(recorded.argv, argv, METHODS, DATASETS)
    args = parse_pretraining(argv, METHODS, DATASETS)
    if args.dataset == "custom" and not Path(args.data_folder).exists():
        read_dataset(**data_source(args))
    if args.pretrained_feature_extractor:
        find_weights(args.pretrained_feature_extractor)
    plan = resolve(args, FACTS, stem(args.stem, args.backbone, args.large_size))
    pl.seed_everything(plan.seed, verbose=False)
    describe(plan, "", "", vars(method_args(args, METHODS)), 1, 1), notes(plan, args)
    json.dumps([dataclasses.asdict(plan), vars(args)], default=str).encode()
    run_id = new_run_id(args.run_id, args.name or args.method, args.dataset, args.backbone, args.wandb)
    folder = create_run_folder(str(output), run_id, automatic=not args.run_id)
    assert folder.parent == output


def evaluate(argv: list[str], output: Path) -> None:
    """What the command does before it reads weights."""
    args = parse_evaluation(argv, list(DATASETS), EVALUATIONS)
    choose_hardware(args.accelerator, args.gpus)
    resolve_settings(args.evaluation, args, args.dataset, read(), len)
    run_id = new_run_id(args.run_id, dashboard_config(args, "evaluation").name, args.dataset, args.backbone)
    assert create_run_folder(str(output), run_id, automatic=not args.run_id).parent == output
    for source in args.pretrained_feature_extractor:
        find_weights(source)


def fuzz(name: str, command, bases: list[str], number: int, root: Path, monkeypatch, **options) -> Fuzzing:
    """The counts of `number` mutated commands, each in a folder in which only out/ may change."""
    (root / "here").mkdir()
    for folder in ("out", "RUN"):
        (root / "here" / folder).mkdir()
    for file in ("A", "B", "W", "RUN/last.ckpt"):
        (root / "here" / file).touch()
    monkeypatch.chdir(root / "here")
    counts = Fuzzing(name, root, root / "here" / "out")

    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck), database=None, **options)
    @given(commands(bases))
    def try_one(argv):
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                counts.call(lambda: command(argv, counts.output))
            finally:
                release_folders()

    try:
        try_one()
    finally:
        print(counts.report())
    return counts


@pytest.mark.parametrize(("command", "bases"), [(pretrain, PRETRAINING), (evaluate, EVALUATION)])
def test_mutated_commands_are_planned_or_refused(tmp_path, monkeypatch, command, bases):
    counts = fuzz(command.__name__, command, bases, 60, tmp_path, monkeypatch, derandomize=True)
    assert counts.inputs >= 60
    assert 0 < counts.refused < counts.inputs


@pytest.mark.slow
@pytest.mark.parametrize(("command", "bases"), [(pretrain, PRETRAINING), (evaluate, EVALUATION)])
def test_thousands_of_mutated_commands_are_planned_or_refused(tmp_path, monkeypatch, capsys, command, bases):
    with capsys.disabled():
        print()
        counts = fuzz(f"mutated commands: {command.__name__}", command, bases, 5000, tmp_path, monkeypatch)
    assert counts.inputs >= 5000
