"""The resolved defaults of every method are those of the tables in docs/methods.md."""

import re
import shlex

import pytest

from cli.pretrain import method_args, parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from tests.helpers.commands import ROOT

SHARED = {"epochs", "optimizer", "lr", "weight_decay", "scheduler", "zero_init_residual"}
VIEWS = {"crop_scale", "jitter", "jitter_strengths", "gray", "blur", "solarize"}


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def documented():
    """Words behind --method -> {flag: documented value}, from all tables of the section "Defaults"."""
    section = (ROOT / "docs" / "methods.md").read_text().split("\n## Defaults\n")[1].split("\n## ")[0]
    rows: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in section.splitlines():
        if line.startswith("| `--method`"):
            header = cells(line)
        elif line.startswith("| `"):
            first, *values = cells(line)
            row = rows.setdefault(first.strip("`"), {})
            for name, value in zip(header[1:], values, strict=True):
                if name == "others":
                    row |= dict(item.split(" ", 1) for item in re.findall(r"`([^`]*)`", value))
                elif value:
                    row[name.strip("`")] = value
    return rows


def value_of(text):
    """The documented value as argparse resolves it: numbers, yes and no, words, or a list of them."""
    words = {"yes": True, "no": False}
    parts = [words[part] if part in words else number(part) for part in text.split()]
    return parts if len(parts) > 1 else parts[0]


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def resolved(words, dataset="imagenet"):
    return parse_pretraining([dataset, "resnet50", "--method", *shlex.split(words)], METHODS, DATASETS)


@pytest.mark.parametrize("words", documented())
def test_documented_defaults_are_the_resolved_ones(words):
    args = vars(resolved(words))
    for flag, text in documented()[words].items():
        value = args[flag][0] if isinstance(args[flag], list) and len(args[flag]) == 1 else args[flag]
        assert value == value_of(text), flag


@pytest.mark.parametrize("name", METHODS)
def test_documented_tables_are_complete(name):
    rows = {words: row for words, row in documented().items() if words.split()[0] == name}
    own = set(vars(method_args(resolved(next(iter(rows))), METHODS)))
    assert set.union(*map(set, rows.values())) == SHARED | VIEWS | own


def test_documented_tables_have_byol_at_both_lengths():
    assert {"byol", "byol --epochs 300", "byol --epochs 1000"} <= set(documented())
    assert resolved("byol").epochs == 100


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("clusterfit", "distill")])
def test_small_images_are_not_blurred(name):
    assert resolved(name, "cifar10").blur == [0.0]
    assert resolved(name, "cifar10").solarize == resolved(name).solarize
    assert resolved(name, "digits").solarize == [0.0]


def test_method_defaults_do_not_count_as_typed_flags():
    args = resolved("rotnet --scheduler cosine")
    assert (args.scheduler, args.lr_decay_steps) == ("cosine", [30, 60, 90, 100])


@pytest.mark.parametrize("words", ["rotnet", "clusterfit --cluster_file FILE"])
def test_step_schedule_decays_at_the_papers_epochs(words):
    args = resolved(words)
    assert (args.lr_decay_steps, args.lr_decay_factor) == ([30, 60, 90, 100], 0.1)
