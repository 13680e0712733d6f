"""The recipes in bash_files/ are commands that parse."""

import os
import re
import shlex
import subprocess

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
    found = re.findall(rf"^\s*(?:srun [^\n]*?|torchrun [^\n]*?)?(?:python3 )?{main}\.py ([^\n`|>]*)", joined, re.M)
    return [shlex.split(c) for c in found if "..." not in c and "RUN_ID" not in c and "--resume trained" not in c]


RECIPES = sorted((ROOT / "bash_files").rglob("*.sh"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipe_is_a_command_of_its_folder(path):
    found = [parse_pretraining(words, METHODS, DATASETS) for words in commands(path.read_text())]
    found += [parse_evaluation(words, DATASETS, EVALUATIONS)
              for words in commands(path.read_text(), "main_linear")]  # fmt: skip
    assert {args.dataset for args in found} == {path.parent.name}
    assert any(path.stem.startswith(args.method) for args in found if "method" in args)
    assert path.read_text().startswith("#"), "a recipe opens with what it is"


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (138, True), (143, True)])
def test_slurm_recipe_requeues_its_job_only_after_a_signal(tmp_path, status, requeued):
    """The batch script itself, with commands of SLURM that only write down how they were called."""
    for name, body in (("srun", f"exit {status}"), ("scontrol", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/called\n{body}\n')
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DATA_FOLDER": "data", "SLURM_JOB_NODELIST": "a,b",
           "SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}  # fmt: skip
    assert subprocess.run(["bash", ROOT / "bash_files/imagenet/nnclr.sh"], env=env).returncode == status
    called = (tmp_path / "called").read_text()
    assert "--run_id nnclr-3 --resume auto\n" in called
    assert ("scontrol requeue 4711" in called) == requeued
