"""Which files of weights count as ours, and the names that they have in a table."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backbones.build import build_backbone
from backbones.export import export_backbone, run_card
from backbones.load import open_all_weights, open_weights, read_metadata, requested_config, save_backbone
from utils.files import write_json
from utils.plan import BackboneConfig

FACTS = {"method": "simclr", "dataset": "digits", "backbone": "test_resnet", "stem": "imagenet", "seed": "3"}


def saved(path, metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_backbone(path, nn.Linear(2, 2), metadata)
    return str(path)


def test_a_header_of_another_tool_has_no_facts_about_a_run(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "vit.safetensors", {"format": "pt", "seed": "a word"})
    weights = open_weights(str(tmp_path / "vit.safetensors"))
    assert weights.metadata == {}
    assert weights.name == "vit"
    assert weights.default_output_dir("elsewhere") == Path("elsewhere")
    flags = Namespace(stem="auto", backbone="test_vit", patch_size=16, pool=None)
    assert requested_config(flags, weights, 32).patch_size == 16


@pytest.mark.parametrize("facts", [{"method": "simclr"}, {"backbone": "resnet18"}])
def test_a_header_that_names_a_method_or_a_backbone_is_of_a_run(tmp_path, facts):
    path = saved(tmp_path / "backbone.safetensors", facts | {"steps": "5"})
    assert read_metadata(Path(path)) == facts | {"steps": "5"}


def test_a_run_has_the_name_of_its_folder_from_within_too(tmp_path, monkeypatch):
    folder = tmp_path / "RUN"
    saved(folder / "backbone.safetensors", FACTS)
    (folder / "below").mkdir()
    assert open_weights(str(folder)).name == "RUN"
    monkeypatch.chdir(folder)
    assert open_weights(".").name == "RUN"
    monkeypatch.chdir(folder / "below")
    assert open_weights("..").name == "RUN"


def test_two_exported_files_are_two_rows_of_a_table(tmp_path):
    """Their cards are in their headers; the folder that they lie in is not their run."""
    network = build_backbone(BackboneConfig("test_resnet", "imagenet"), 32)[0]
    for method in ("simclr", "byol"):
        export_backbone("timm", tmp_path / f"{method}.safetensors", network, FACTS | {"method": method}, 32)
        export_backbone("hub", tmp_path / f"{method}_hub", network, FACTS | {"method": method}, 32)
    paths = ["simclr.safetensors", "byol.safetensors", "simclr_hub/model.safetensors", "byol_hub/model.safetensors"]
    opened = open_all_weights([str(tmp_path / path) for path in paths])
    assert [weights.name for weights in opened] == ["simclr", "byol", "simclr_hub", "byol_hub"]
    assert [weights.metadata["method"] for weights in opened] == ["simclr", "byol"] * 2
    assert {weights.default_output_dir("elsewhere") for weights in opened} == {Path("elsewhere")}


def test_an_exported_file_does_not_take_the_facts_of_a_run_that_it_lies_beside(tmp_path):
    path = saved(tmp_path / "simclr.safetensors", FACTS | {"command": "of simclr"})
    write_json(tmp_path / "args.json", {"argv": ["of", "byol"], "commit": "abc"})
    write_json(tmp_path / "summary.json", {"knn_20": 91.25})
    card = run_card(open_weights(path), "test_resnet", "imagenet", {})
    assert card == FACTS | {"command": "of simclr"}
