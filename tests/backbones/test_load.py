"""Weights from files and run folders: reading without code, metadata, refusals, and loading into a backbone."""

import contextlib
import os
import pickle
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backbones.build import build_backbone
from backbones.load import (
    METADATA_KEYS,
    Weights,
    backbone_metadata,
    check_classes,
    check_compatible,
    choose_size,
    find_weights,
    guess_stem,
    initial_config,
    load_backbone,
    load_pretrained,
    open_all_weights,
    open_weights,
    read_tree,
    save_backbone,
    stem_of,
)
from backbones.match_keys import KeyFlags
from tests.helpers.checkpoints import LAYOUTS, add_prefix, checkpoint, filled_network, new_network, rename_key
from utils.errors import UserError
from utils.files import write_json
from utils.plan import BackboneConfig

PLAN = {
    "method": "simclr", "seed": 3, "training_set": {"name": "digits", "images": 1438, "num_classes": 10},
    "backbone": {"name": "resnet18", "stem": "small", "zero_init_residual": True}, "views": {"large_size": 16},
}  # fmt: skip
METADATA = {"method": "simclr", "dataset": "digits", "backbone": "resnet18", "stem": "small",
            "zero_init_residual": "True", "large_size": "16", "num_classes": "10", "seed": "3", "patch_size": "None",
            "drop_path": "0.0", "pool": "None"}  # fmt: skip


def load(path, network, flags=None):
    return load_backbone(open_weights(str(path)), network, flags)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def small_network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def trained_on(**facts):
    return Weights(Path("trained_models/RUN/backbone.safetensors"), {}, METADATA | facts)


@pytest.mark.parametrize("tool", LAYOUTS)
def test_load_backbone_reads_the_files_of_every_tool(tmp_path, tool):
    trained, path, network = filled_network(1), tmp_path / "weights.pth", new_network()
    torch.save(checkpoint(tool, trained), path)
    match = load(path, network)
    assert same(trained, network), "another network of the file, or only a part"
    assert len(match.tensors) == len(trained.state_dict())


@pytest.mark.parametrize("tool", LAYOUTS)
def test_load_backbone_refuses_one_missing_tensor_and_changes_nothing(tmp_path, tool):
    path, network = tmp_path / "weights.pth", new_network()
    tree = rename_key(checkpoint(tool, filled_network(1)), ("layer1.0.conv1.weight", ".4.0.conv1.weight"))
    torch.save(tree, path)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match=r"1 missing \['layer1.0.conv1.weight'\]"):
        load(path, network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("other", [nn.Linear(5, 4), nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))])
def test_load_backbone_refuses_another_network(tmp_path, other):
    save_backbone(tmp_path / "w.safetensors", small_network(), {})
    with pytest.raises(UserError, match="does not fit the backbone: .*missing.*unexpected.*another shape"):
        load(tmp_path / "w.safetensors", other)


def test_load_backbone_names_the_file_of_another_architecture(tmp_path):
    torch.save({"state_dict": {"transformer.wte": torch.ones(3)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: no tensor of the backbone \(conv1"):
        load(tmp_path / "w.pth", new_network())


def test_load_backbone_refuses_nan(tmp_path):
    trained = filled_network(1)
    trained.state_dict()["layer1.0.bn1.weight"][0] = float("nan")
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"1 tensors contain NaN or infinity \(layer1.0.bn1.weight\)"):
        load(tmp_path / "w.pth", new_network())


def test_load_backbone_keeps_counters_that_an_old_file_lacks(tmp_path):
    trained, path, network = filled_network(1), tmp_path / "w.safetensors", new_network()
    save_file({f"backbone.{k}": v for k, v in trained.state_dict().items() if "num_batches" not in k}, path)
    match = load(path, network)
    loaded = {k: v for k, v in trained.state_dict().items() if "num_batches" not in k}
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.items())
    assert match.skipped == [k for k in trained.state_dict() if "num_batches" in k]


@pytest.mark.parametrize("fits", [True, False])
def test_load_backbone_reports_in_any_case(tmp_path, fits):
    tensors, reports = dict(filled_network(1).state_dict()), []
    if not fits:
        del tensors["layer1.0.conv1.weight"]
    torch.save({"state_dict": add_prefix("encoder.", tensors)}, tmp_path / "w.pth")
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="does not fit"):
        load_backbone(open_weights(str(tmp_path / "w.pth")), new_network(), KeyFlags(), reports.append)
    (report,) = reports
    assert report.startswith(f"{tmp_path / 'w.pth'}\n")
    assert "found under state_dict encoder.*" in report


def test_load_pretrained_follows_the_flags_and_prints_the_report(tmp_path, capsys):
    trained, network = filled_network(1), new_network()
    torch.save({"a": add_prefix("x.", dict(trained.state_dict()))}, tmp_path / "w.pth")
    flags = {"state_dict_key": "a", "remove_prefix": "x.", "append_prefix": "", "skip_layers": ["num_batches_tracked"]}
    load_pretrained(Namespace(pretrained_feature_extractor=str(tmp_path / "w.pth"), **flags), network)
    assert same(trained, network)
    assert "found under a x.*" in capsys.readouterr().out


def test_load_pretrained_without_the_flag_changes_nothing():
    network = new_network()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    load_pretrained(Namespace(pretrained_feature_extractor=None), network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_save_backbone_and_load_backbone_are_inverse(tmp_path):
    a, b = small_network(), small_network()
    save_backbone(tmp_path / "backbone.safetensors", a, {"backbone": "two layers"})
    weights = open_weights(str(tmp_path))
    assert weights.metadata == {"backbone": "two layers"}
    load_backbone(weights, b)
    assert same(a, b)
    assert os.listdir(tmp_path) == ["backbone.safetensors"]


def test_backbone_metadata_has_all_keys_as_text():
    assert backbone_metadata(PLAN) == METADATA
    assert tuple(METADATA) == METADATA_KEYS


def test_open_weights_reads_the_metadata_of_a_checkpoint_from_its_run_folder(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert open_weights(str(tmp_path)).metadata == {}
    write_json(tmp_path / "args.json", {"argv": [], "plan": PLAN})
    weights = open_weights(str(tmp_path))
    assert weights.metadata == METADATA
    assert weights.name == tmp_path.name
    assert weights.default_output_dir("elsewhere") == tmp_path


def test_weights_of_other_tools_have_the_name_of_their_file(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "moco_v2.pth")
    write_json(tmp_path / "args.json", {"plan": PLAN})
    weights = open_weights(str(tmp_path / "moco_v2.pth"))
    assert weights.metadata == {}
    assert weights.name == "moco_v2"
    assert weights.default_output_dir("elsewhere") == Path("elsewhere")


def test_open_all_weights_refuses_one_name_for_two_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        torch.save({"x": torch.ones(1)}, tmp_path / folder / "w.pth")
    torch.save({"x": torch.ones(1)}, tmp_path / "b" / "v.pth")
    a, b, c = (str(tmp_path / path) for path in ("a/w.pth", "b/w.pth", "b/v.pth"))
    assert [weights.name for weights in open_all_weights([a, c])] == ["w", "v"]
    with pytest.raises(UserError, match="names w twice"):
        open_all_weights([a, b, c])


def test_find_weights_prefers_the_backbone_of_a_run(tmp_path):
    with pytest.raises(UserError, match="has no backbone.safetensors"):
        find_weights(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        find_weights(str(tmp_path / "gone"))
    for name in ("last.ckpt", "backbone.safetensors"):
        (tmp_path / name).touch()
        assert find_weights(str(tmp_path)) == tmp_path / name


def test_choose_size_prefers_the_request_then_the_pretraining_then_the_default():
    a, b, foreign = trained_on(), trained_on(large_size="32"), Weights(Path("w.pth"), {}, {})
    assert choose_size(None, [a, a], 224) == 16
    assert choose_size(None, [foreign], 224) == 224
    assert choose_size(64, [a, b], 224) == 64
    with pytest.raises(UserError, match=r"views of \[16, 32\] pixels; .*--large_size"):
        choose_size(None, [a, b], 224)


def test_stem_of_prefers_the_metadata_then_the_request_then_the_tensors():
    seven = {"state_dict": {"conv1.weight": torch.ones(64, 3, 7, 7)}}
    foreign = Weights(Path("w.pth"), seven, {})
    assert stem_of("auto", "resnet18", trained_on(), 224) == "small"
    assert stem_of("small", "resnet18", foreign, 32) == "small"
    assert stem_of("auto", "resnet18", foreign, 32) == "imagenet"
    assert stem_of("auto", "resnet18", Weights(Path("w.pth"), {}, {}), 32) == "small"


def test_check_compatible_refuses_another_backbone_or_stem():
    check_compatible(trained_on(), "resnet18", "auto", "small")
    check_compatible(trained_on(), "resnet18", "small", "small")
    check_compatible(Weights(Path("w.pth"), {}, {}), "resnet18", "auto", "imagenet")
    with pytest.raises(UserError, match="weights of resnet18, not of resnet50"):
        check_compatible(trained_on(), "resnet50", "auto", "small")
    with pytest.raises(UserError, match="small stem, not imagenet"):
        check_compatible(trained_on(), "resnet18", "imagenet", "small")


def test_initial_config_is_that_of_the_run():
    assert initial_config("auto", "resnet18", trained_on(), 16) == BackboneConfig("resnet18", "small", "", True)
    other = Weights(Path("x.pth"), {}, {})
    assert initial_config("auto", "resnet18", other, 224) == BackboneConfig("resnet18", "imagenet", "", False)


def test_check_classes_refuses_other_images_of_the_same_data_set():
    check_classes("digits", METADATA, 10, 10)
    check_classes("digits", METADATA, 10, 0)
    check_classes("digits", METADATA | {"num_classes": "0"}, None, 12)
    check_classes("custom", METADATA | {"dataset": "custom"}, None, 12)
    with pytest.raises(UserError, match="digits has 12 classes here, .* with 10"):
        check_classes("digits", METADATA, 10, 12)
    check_classes("digits", METADATA | {"num_classes": "12"}, 10, 12)


@pytest.mark.parametrize("metadata", [{}, METADATA])
def test_check_classes_lets_weights_of_another_data_set_pass(metadata):
    check_classes("cifar100", metadata, 100, 100)
    check_classes("custom", metadata, None, 3)
    with pytest.raises(UserError, match="cifar100 has 100 classes, but the folder holds 10"):
        check_classes("cifar100", metadata, 100, 10)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_read_tree_runs_no_code_of_a_pickle(tmp_path, legacy):
    evil = Evil(tmp_path / "ran")
    if legacy:
        (tmp_path / "w.pth").write_bytes(pickle.dumps({"evil": evil}, protocol=2))
    else:
        torch.save({"state_dict": filled_network(1).state_dict(), "evil": evil}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"contains pickled object \w*.?system; refused \(weights_only\)"):
        read_tree(tmp_path / "w.pth")
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match="x.pth is not a readable checkpoint"):
        read_tree(tmp_path / "x.pth")
    (tmp_path / "text.pth").write_text("hello\n")
    with pytest.raises(UserError, match=r"text.pth is not a readable checkpoint \(it is not of torch.save\)"):
        read_tree(tmp_path / "text.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["module", "dictionary"])
def test_read_tree_refuses_pickled_objects_with_advice_that_works(tmp_path, monkeypatch, kind):
    trained = small_network()
    content = trained if kind == "module" else {"state_dict": trained.state_dict(), "config": Path("x")}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="contains pickled object") as e:
        read_tree(tmp_path / "w.pth")
    assert "\n" not in str(e.value)
    advice = dict(zip(("module", "dictionary"), re.findall(r"`(.*?)`", str(e.value)), strict=True))
    monkeypatch.chdir(tmp_path)
    exec(advice[kind], {"torch": torch, "FILE": "w.pth"})
    network = small_network()
    load("weights.pth", network)
    assert same(trained, network)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x02"])
def test_read_tree_refuses_broken_files(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w.pth is not a readable checkpoint \(.*\)"):
        read_tree(tmp_path / "w.pth")
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"x.safetensors is not a readable .safetensors file \(.*\)"):
        open_weights(str(tmp_path / "x.safetensors"))


def test_read_tree_refuses_a_truncated_file(tmp_path):
    torch.save(filled_network(1).state_dict(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="w.pth is not a readable checkpoint"):
        read_tree(tmp_path / "w.pth")


def test_read_tree_refuses_a_single_tensor(tmp_path):
    torch.save(torch.ones(3), tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds a Tensor, not a dictionary of tensors"):
        read_tree(tmp_path / "w.pth")


@pytest.mark.parametrize(("stem", "side"), [("small", 3), ("imagenet", 7)])
def test_guess_stem_looks_at_the_first_convolution(stem, side):
    for name in ("conv1.weight", "backbone.0.weight"):
        tree = {"state_dict": {name: torch.ones(64, 3, side, side), "layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}}
        assert guess_stem(tree) == stem
    assert guess_stem({"patch_embed.proj.weight": torch.ones(8, 3, 16, 16)}) is None


def written(path, **facts):
    save_backbone(path, small_network(), METADATA | facts)
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [("patch_size", "0"), ("patch_size", "1e3"), ("drop_path", "1.5"), ("drop_path", "nan"), ("pool", "max"),
     ("large_size", "1e9"), ("large_size", "99999"), ("large_size", "-32"), ("num_classes", "ten"), ("stem", "big"),
     ("num_classes", "\u0661"), ("seed", "9" * 30), ("zero_init_residual", "1"), ("stem", "small\n")],
)  # fmt: skip
def test_read_metadata_refuses_values_that_no_run_writes(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"backbone.safetensors has {key} .*, needs .*; copy it again") as e:
        open_weights(str(written(tmp_path / "backbone.safetensors", **{key: value})))
    assert len(str(e.value).splitlines()) == 1


def test_weights_of_a_run_with_changed_metadata_or_tensors_are_refused(tmp_path):
    path = written(tmp_path / "backbone.safetensors")
    content = path.read_bytes()
    changed = content.replace(b'"num_classes":"10"', b'"num_classes":"11"')
    for other in (changed, content[:-1] + bytes([content[-1] ^ 1])):
        assert other != content
        path.write_bytes(other)
        with pytest.raises(UserError, match="its checksum is not that of its content; copy it again"):
            open_weights(str(path))
    path.write_bytes(content)
    assert open_weights(str(path)).metadata == METADATA


def test_weights_that_an_older_version_wrote_have_no_checksum_and_are_read(tmp_path):
    network = small_network()
    save_file(network.state_dict(), tmp_path / "backbone.safetensors", METADATA)
    weights = open_weights(str(tmp_path))
    assert weights.metadata == METADATA
    assert weights.tree.keys() == network.state_dict().keys()


def test_a_flipped_bit_in_an_archive_of_torch_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"x": torch.ones(100)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(100).numpy().tobytes()) + 40
    content[at] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(100)), "torch reads it without a word"
    with pytest.raises(UserError, match="w.pth is not a readable checkpoint .*has a wrong checksum"):
        open_weights(str(path))


VIT = {"name": "vit", "stem": "imagenet", "zero_init_residual": True, "patch_size": 8, "drop_path": 0.1, "pool": "avg"}


def vit(size, **options):
    return build_backbone(BackboneConfig("test_vit", "imagenet", **options), size)[0].eval()


def test_metadata_of_a_transformer_rebuilds_it(tmp_path):
    path, run = tmp_path / "backbone.safetensors", vit(32, patch_size=8, drop_path=0.1, pool="avg")
    metadata = backbone_metadata(PLAN | {"backbone": VIT | {"name": "test_vit"}, "views": {"large_size": 32}})
    assert [metadata[key] for key in ("patch_size", "drop_path", "pool")] == ["8", "0.1", "avg"]
    save_backbone(path, run, metadata)
    weights = open_weights(str(path))
    config = initial_config("auto", "test_vit", weights, 32)
    assert config == BackboneConfig("test_vit", "imagenet", "", True, patch_size=8, drop_path=0.0, pool="avg")
    network = build_backbone(config, 32)[0].eval()
    load_backbone(weights, network)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), run(x))
    assert initial_config("auto", "test_vit", weights, 32, pool="token").pool == "token"


def test_a_run_of_before_the_flags_of_transformers_has_the_networks_own():
    metadata = {k: v for k, v in METADATA.items() if k not in ("patch_size", "drop_path", "pool")}
    config = initial_config("auto", "resnet18", Weights(Path("x.pth"), {}, metadata), 16)
    assert config == BackboneConfig("resnet18", "small", "", True)


def test_check_compatible_refuses_another_patch_size():
    check_compatible(trained_on(patch_size="8"), "resnet18", "auto", "small", 8)
    check_compatible(Weights(Path("w.pth"), {}, {}), "resnet18", "auto", "imagenet", 8)
    with pytest.raises(UserError, match="trained with patches of 8 pixels; omit --patch_size 4"):
        check_compatible(trained_on(patch_size="8"), "resnet18", "auto", "small", 4)
    with pytest.raises(UserError, match="trained with the patches of resnet18; omit --patch_size 4"):
        check_compatible(trained_on(), "resnet18", "auto", "small", 4)


@pytest.mark.parametrize(("trained", "size"), [(96, 32), (32, 96), (96, 48)])
def test_position_embeddings_of_another_image_size_are_interpolated_with_a_note(tmp_path, trained, size):
    """The network computes what one built for the trained size does with images of this size (dynamic_img_size)."""
    original, path, said = vit(trained, patch_size=16), tmp_path / "w.pth", []
    torch.save({"model": {f"backbone.{k}": v for k, v in original.state_dict().items()}}, path)
    network = vit(size)
    match = load_backbone(open_weights(str(path)), network, report=said.append)
    shapes = [f"(1, {1 + (side // 16) ** 2}, 64)" for side in (trained, size)]
    assert match.resampled == [f"pos_embed {shapes[0]} to {shapes[1]}"]
    assert f"note: position embeddings interpolated for this image size: {match.resampled[0]}" in said[0]
    dynamic = build_backbone(BackboneConfig("test_vit", "imagenet"), trained, size)[0].eval()
    dynamic.load_state_dict(original.state_dict())
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(network(x), dynamic(x))


def test_position_embeddings_of_the_same_image_size_are_loaded_as_they_are(tmp_path):
    original, path, said = vit(48), tmp_path / "w.pth", []
    torch.save(original.state_dict(), path)
    network = vit(48)
    assert not load_backbone(open_weights(str(path)), network, report=said.append).resampled
    assert "interpolated" not in said[0]
    assert torch.equal(network.pos_embed, original.pos_embed)


@pytest.mark.parametrize("positions", [torch.zeros(1, 12, 64), torch.zeros(1, 10, 32), torch.zeros(10, 64)])
def test_other_position_embeddings_are_refused(tmp_path, positions):
    path = tmp_path / "w.pth"
    torch.save(vit(32).state_dict() | {"pos_embed": positions}, path)
    with pytest.raises(UserError, match="1 of another shape .*pos_embed .* instead of .1, 5, 64"):
        load(path, vit(32))
