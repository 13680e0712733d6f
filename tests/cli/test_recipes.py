"""The recipes in bash_files/ are commands that parse."""

import re
import shlex

import pytest

from cli.evaluate import parse_evaluation
from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
from tests.helpers.commands import ROOT


def commands(text, main="main_contrastive"):
    """Commands of a program in a shell file, as arguments; variables become their default or a word."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", joined)
    joined = re.sub(r"\$\{[^}]*\}|\$\w+", "FOLDER", joined)
    found = re.findall(rf"^\s*(?:srun |torchrun [^\n]*?)?(?:python3 )?{main}\.py ([^\n`|>]*)", joined, re.M)
    return [shlex.split(c) for c in found if "..." not in c and "RUN_ID" not in c and "--resume" not in c]


RECIPES = sorted((ROOT / "bash_files").rglob("*.sh"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipe_is_a_command_of_its_folder(path):
    found = [parse_pretraining(words, METHODS, DATASETS) for words in commands(path.read_text())]
    found += [parse_evaluation(words, DATASETS, EVALUATIONS)
              for words in commands(path.read_text(), "main_linear")]  # fmt: skip
    assert {args.dataset for args in found} == {path.parent.name}
    assert any(path.stem.startswith(args.method) for args in found if "method" in args)
    assert path.read_text().startswith("#"), "a recipe opens with what it is"
