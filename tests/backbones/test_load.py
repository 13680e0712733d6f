"""Weights in from anywhere: every layout that users meet, the report, and what is refused."""

import contextlib
import os
import pickle
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backbones.build import build_backbone
from backbones.load import guess_stem, open_weights, read_tree
from backbones.load import load_backbone as load_into
from backbones.match_keys import KeyFlags
from utils.errors import UserError

torch.manual_seed(0)
NAME = "test_resnet.r160_in1k"


def load_backbone(path, backbone, flags=None, **how):
    return load_into(open_weights(str(path)), backbone, flags, **how)


def report(path, flags=None):
    """What is said of the file, whether it fits or not."""
    said = []
    with contextlib.suppress(UserError):
        load_backbone(path, network(), flags, say=said.append)
    return said[0]


def network():
    return build_backbone(NAME, "imagenet", 32)[0]


def filled(seed=1):
    torch.manual_seed(seed)
    made = network()
    for v in made.state_dict().values():
        v.copy_(torch.randn_like(v) if v.is_floating_point() else torch.full_like(v, 7))
    return made


def under(prefix, tensors):
    return {prefix + k: v for k, v in tensors.items()}


def numbered(made):
    """As nn.Sequential(*list(resnet.children())[:-1]) names its parts."""
    at = {name: str(i) for i, (name, _) in enumerate(made.named_children())}
    return {".".join([at[k.split(".")[0]], *k.split(".")[1:]]): v for k, v in made.state_dict().items()}


def layouts(made):
    """name -> a checkpoint of that tool around the tensors of the network, with what else such files hold."""
    own, other = made.state_dict(), filled(2).state_dict()
    head = {"fc.weight": torch.ones(4, 96), "fc.bias": torch.ones(4)}
    more = {"0.weight": torch.ones(3, 3)}
    fc = {"fc.0.weight": torch.ones(8, 96), "fc.2.weight": torch.ones(4, 8)}
    extra = {"epoch": 3, "arch": "resnet50", "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}}
    return {
        "ours": {"state_dict": under("backbone.", own) | {"probe.1.weight": torch.ones(2, 96)}, "global_step": 5},
        "ours with a teacher": {"state_dict": under("backbone.", own) | under("target.teacher.0.", other)},
        "torchvision": own | head,
        "timm": {"state_dict": own | head, "version": 2},
        "MoCo": extra | {"state_dict": under("module.encoder_q.", own | fc) | under("module.encoder_k.", other | fc)
                         | {"module.queue": torch.ones(8, 4), "module.queue_ptr": torch.zeros(1)}},
        "SimSiam": extra | {"state_dict": under("module.encoder.", own | fc) | under("module.predictor.", more)},
        "Barlow Twins": {"epoch": 9, "model": under("module.backbone.", own) | under("module.projector.", more),
                         "optimizer": extra["optimizer"]},
        "DINO": {"student": under("module.backbone.", other) | under("module.head.mlp.", more),
                 "teacher": under("backbone.", own) | under("head.mlp.", more),
                 "args": Namespace(arch="vit", lr=np.float64(0.1)), "epoch": np.int64(3)},
        "VISSL": {"phase_idx": 4, "classy_state_dict": {"base_model": {"model": {
            "trunk": under("_feature_blocks.", own), "heads": {"0.clf.0.weight": torch.ones(3, 3)}}, "meters": {}}}},
        "solo-learn": {"state_dict": under("backbone.", own) | under("momentum_backbone.", other),
                       "hyper_parameters": {"lr": 0.3}},
        "Lightly": {"state_dict": under("backbone.", numbered(made))
                    | under("backbone_momentum.", numbered(filled(2)))},
        "compiled": {"model": under("_orig_mod.", own)},
    }  # fmt: skip


TOOLS = list(layouts(network()))


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("tool", TOOLS)
def test_every_layout_loads_completely_without_flags(tmp_path, tool):
    made, path = filled(), tmp_path / "weights.pth"
    torch.save(layouts(made)[tool], path)
    empty = network()
    match = load_backbone(path, empty)
    assert same(made, empty), "the wrong half of the file, or not all of it"
    assert len(match.tensors) == len(made.state_dict())
    assert not match.missing
    assert not match.mismatched


@pytest.mark.parametrize("tool", TOOLS)
def test_one_renamed_tensor_stops_it(tmp_path, tool):
    def rename(tree):
        out = {}
        for key, value in tree.items():
            out["renamed" if str(key).endswith(("layer1.0.conv1.weight", ".4.0.conv1.weight")) else key] = (
                rename(value) if isinstance(value, dict) else value
            )
        return out

    path, empty = tmp_path / "weights.pth", network()
    torch.save(rename(layouts(filled())[tool]), path)
    before = {k: v.clone() for k, v in empty.state_dict().items()}
    with pytest.raises(UserError, match=r"1 missing \['layer1.0.conv1.weight'\]"):
        load_backbone(path, empty)
    assert all(torch.equal(v, before[k]) for k, v in empty.state_dict().items()), "nothing was overwritten"


def test_flags_say_where_to_look(tmp_path):
    made, path = filled(), tmp_path / "weights.pth"
    strange = {"a": {"b": under("my.layers.", {k.removeprefix("layer1."): v for k, v in made.state_dict().items()
                                              if k.startswith("layer1.")})}}  # fmt: skip
    torch.save(strange, path)
    flags = KeyFlags("a.b", "my.layers.", "layer1.", ("conv1", "bn1", "layer2", "layer3", "layer4", "num_batches"))
    match = load_backbone(path, network(), flags)
    assert all(k.startswith("layer1.") for k in match.tensors)
    assert {k.split(".")[0] for k in match.skipped} >= {"conv1", "bn1", "layer2"}
    with pytest.raises(UserError, match=r"--state_dict_key a.c: no 'c' in a; it holds b"):
        load_backbone(path, network(), KeyFlags("a.c"))


def test_an_empty_key_is_the_flat_file(tmp_path):
    made, path, empty = filled(), tmp_path / "weights.pth", network()
    torch.save(made.state_dict() | {"state_dict": filled(2).state_dict()}, path)
    load_backbone(path, empty, KeyFlags(""))
    assert same(made, empty)


def test_the_report_counts_and_names(tmp_path):
    tensors = filled().state_dict()
    del tensors["layer2.0.conv1.weight"]
    tensors["layer3.0.conv1.weight"] = torch.ones(1, 2, 3, 3)
    torch.save({"state_dict": under("encoder.", tensors | {"fc.weight": torch.ones(2)})}, tmp_path / "w.pth")
    table = report(tmp_path / "w.pth")
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert lines["missing"].split()[1:] == ["1", "layer2.0.conv1.weight"]
    assert lines["unexpected"].split()[1:] == ["1", "fc.weight"]
    assert "layer3.0.conv1.weight (1, 2, 3, 3) for" in lines["mismatched"]
    assert "found under state_dict encoder.*" in table


def test_two_places_that_fit_are_told(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(layouts(filled())["MoCo"], path)
    match = load_backbone(path, network())
    assert match.where == "state_dict module.encoder_q.*"
    assert match.also == ["state_dict module.encoder_k.*"]


def test_safetensors_and_the_counters_that_old_files_lack(tmp_path):
    made, path, empty = filled(), tmp_path / "w.safetensors", network()
    save_file({f"backbone.{k}": v for k, v in made.state_dict().items() if "num_batches" not in k}, path)
    match = load_backbone(path, empty)
    assert all(torch.equal(v, empty.state_dict()[k]) for k, v in made.state_dict().items() if "num_batches" not in k)
    assert match.skipped
    assert all("num_batches_tracked" in k for k in match.skipped)


def test_another_architecture_is_told(tmp_path):
    torch.save({"state_dict": {"transformer.wte": torch.ones(3)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: no tensor of the backbone \(conv1.*it holds 1: transformer.wte"):
        load_backbone(tmp_path / "w.pth", network())


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    made = filled()
    made.state_dict()["layer1.0.bn1.weight"][0] = float("nan")
    torch.save(made.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"1 tensors hold NaN or infinity \(layer1.0.bn1.weight\)"):
        load_backbone(tmp_path / "w.pth", network())


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_that_wants_to_run_code_does_not(tmp_path, plain):
    evil = Evil(tmp_path / "ran")
    if plain:
        (tmp_path / "w.pth").write_bytes(pickle.dumps({"evil": evil}, protocol=2))
    else:
        torch.save({"state_dict": filled().state_dict(), "evil": evil}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"a pickle that wants to run \w*.?system and was not opened; .* tensors alone"):
        load_backbone(tmp_path / "w.pth", network())
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match="x.pth is not a readable checkpoint"):
        load_backbone(tmp_path / "x.pth", network())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x02"])
def test_files_that_are_broken(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w.pth is not a readable checkpoint \(.*\); is it whole\?"):
        read_tree(tmp_path / "w.pth")


def test_a_truncated_file(tmp_path):
    torch.save(filled().state_dict(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="w.pth is not a readable checkpoint"):
        read_tree(tmp_path / "w.pth")


def test_what_is_no_dictionary(tmp_path):
    torch.save(torch.ones(3), tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds a Tensor, not a dictionary of tensors"):
        read_tree(tmp_path / "w.pth")


@pytest.mark.parametrize(("stem", "side"), [("small", 3), ("imagenet", 7)])
def test_the_stem_is_told_from_the_tensors(stem, side):
    for layout in ("conv1.weight", "backbone.0.weight"):
        tree = {"state_dict": {layout: torch.ones(64, 3, side, side), "layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}}
        assert guess_stem(tree) == stem
    assert guess_stem({"patch_embed.proj.weight": torch.ones(8, 3, 16, 16)}) is None
