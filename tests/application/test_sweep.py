"""The shipped sweep of Weights & Biases, as its agent runs it, without a network."""

import os
import subprocess
import sys

import pytest
import yaml

from cli.pretrain import parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from tests.helpers.commands import ROOT
from tests.helpers.dashboard_files import history, records

SWEEP = ROOT / "bash_files" / "sweep.yaml"


def command_of(choice):
    """The words by which the client's own code starts the program of the sweep; choice: of each parameter's values."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(SWEEP.read_text())
    values = {name: p["values"][choice] if "values" in p else p.get("value", p.get("min"))
              for name, p in sweep["parameters"].items()}  # fmt: skip
    args = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros = {"${env}": [], "${program}": [sweep["program"]], "${args}": args["args"]}
    return [part for word in create_sweep_command(sweep["command"]) for part in macros.get(word, [word])], values


@pytest.mark.parametrize("choice", [0, 1])
def test_words_of_the_agent_are_flags(choice):
    words, values = command_of(choice)
    assert words[:4] == ["python3", "main_contrastive.py", "digits", "resnet18"]
    args = vars(parse_pretraining(words[2:], METHODS, DATASETS))
    assert args["predictor"] is not values.pop("no_predictor")
    assert {name: args[name] for name in values} == values


@pytest.mark.slow
def test_sweep_runs_without_a_network_in_the_folder_that_has_the_name_of_its_run(tmp_path):
    words, values = command_of(0)
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_RUN_ID": "run7", "WANDB_SWEEP_ID": "sweep1",
                        "WANDB_SILENT": "true", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    program = [sys.executable, str(ROOT / words[1]), *words[2:]]
    process = subprocess.run(program, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    (offline,) = (tmp_path / "trained_models" / "run7" / "wandb").glob("offline-run-*-run7")
    (run,) = [record.run for record in records(offline) if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.sweep_id) == ("run7", "sweep1")
    assert any("knn/20" in row for row in history(offline).values()), "what the sweep looks at"
