"""Configurations of other tools, translated: each is run on a few small images."""

import pytest

import main_contrastive
from cli.pretrain import parse_pretraining, pretraining_words
from data.datasets import DATASETS
from methods import METHODS
from tests.helpers.commands import ROOT, TINY, small
from utils.files import read_json, read_metrics

CONFIGS = sorted((ROOT / "bash_files" / "migration").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_parses_and_the_documents_show_it(path):
    args = parse_pretraining(pretraining_words(["--config", str(path)], METHODS, DATASETS), METHODS, DATASETS)
    assert args.method in path.stem
    assert path.name in (ROOT / "docs" / "migration.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("no_embedding")
def test_configuration_runs_on_small_images(path, tmp_path, few):
    """The file as it is shipped; only data, sizes and length come from the command line."""
    method = path.stem.rpartition("_")[2]
    sizes = small(method, data_folder=few[1])
    argv = ["custom", TINY[1], "--config", str(path), *sizes, *few, "--num_workers", "0", "--epochs", "1",
            "--precision", "32", "--output", str(tmp_path), "--run_id", "r"]  # fmt: skip
    main_contrastive.main(argv)
    recorded = read_json(tmp_path / "r" / "args.json")
    assert recorded["flags"]["optimizer"] == recorded["plan"]["optimizer"]["name"]
    assert not any(word.startswith("--config") for word in recorded["argv"])
    losses = [row["loss"] for row in read_metrics(tmp_path / "r" / "metrics.csv") if row["loss"]]
    assert len(losses) >= 2, "the first and the last step"
