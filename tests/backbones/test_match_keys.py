"""Locations of a backbone's tensors in checkpoints of many tools."""

import copy
import functools
from argparse import Namespace

import pytest
import torch

from backbones.match_keys import KeyFlags, check_finite, find_tensors, key_flags, tensor_dicts
from tests.helpers.checkpoints import LAYOUTS, add_prefix, checkpoint, filled_network, rename_key
from utils.errors import UserError


@functools.cache
def trained():
    return filled_network(1)


def find(tree, flags=None):
    return find_tensors(tree, trained(), flags or KeyFlags())


def equals_trained(match):
    return all(torch.equal(match.tensors[k], v) for k, v in trained().state_dict().items())


@pytest.mark.parametrize("tool", LAYOUTS)
def test_find_tensors_finds_every_layout_without_flags(tool):
    match = find(checkpoint(tool, trained()))
    assert equals_trained(match), "another network of the file, or only a part"
    assert match.is_complete
    assert not match.missing
    assert not match.mismatched


@pytest.mark.parametrize("tool", LAYOUTS)
def test_find_tensors_reports_one_renamed_tensor(tool):
    tree = rename_key(checkpoint(tool, trained()), ("layer1.0.conv1.weight", ".4.0.conv1.weight"))
    match = find(tree)
    assert match.missing == ["layer1.0.conv1.weight"]
    assert not match.is_complete


def test_find_tensors_follows_all_four_flags():
    layer1 = {k.removeprefix("layer1."): v for k, v in trained().state_dict().items() if k.startswith("layer1.")}
    tree = {"a": {"b": add_prefix("my.layers.", layer1)}}
    skip = ("conv1", "bn1", "layer2", "layer3", "layer4", "num_batches")
    match = find(tree, KeyFlags("a.b", "my.layers.", "layer1.", skip))
    assert match.is_complete
    assert all(k.startswith("layer1.") for k in match.tensors)
    assert {k.split(".")[0] for k in match.skipped} >= {"conv1", "bn1", "layer2"}


def test_find_tensors_takes_only_names_that_begin_with_the_prefix_to_remove():
    """The other network of the file must not fill what the named one lacks, nor take its place."""
    named, other = dict(trained().state_dict()), dict(filled_network(2).state_dict())
    match = find(add_prefix("q.", named) | other, KeyFlags("", "q."))
    assert equals_trained(match)
    assert match.unexpected == list(other)
    del named["layer1.0.conv1.weight"]
    match = find(other | add_prefix("q.", named), KeyFlags(remove_prefix="q."))
    assert match.missing == ["layer1.0.conv1.weight"]


def test_find_tensors_refuses_a_prefix_with_which_no_name_begins():
    tree = {"model": add_prefix("encoder.", dict(trained().state_dict()))}
    expected = r"^no name under model begins with 'encode_q.' \(encoder.conv1.*more\); correct --remove_prefix, or"
    with pytest.raises(UserError, match=expected):
        find(tree, KeyFlags("model", "encode_q."))
    with pytest.raises(UserError, match=r"no name at the top of the file begins with 'encoder.' \(none\)"):
        find(tree, KeyFlags(remove_prefix="encoder."))


def test_find_tensors_refuses_a_state_dict_key_that_is_absent():
    tree = {"a": {"model": {"x": torch.ones(1)}}}
    with pytest.raises(UserError, match=r"a.modle: no 'modle' in a \(did you mean model\?\); .*: model$"):
        find(tree, KeyFlags("a.modle"))


def test_find_tensors_takes_an_empty_state_dict_key_as_the_top_of_the_file():
    tree = trained().state_dict() | {"state_dict": filled_network(2).state_dict()}
    match = find(tree, KeyFlags(""))
    assert equals_trained(match)
    assert not match.alternatives, "nothing was detected"


def test_find_tensors_names_other_locations_that_fit():
    match = find(checkpoint("MoCo", trained()))
    assert match.location == "state_dict module.encoder_q.*"
    assert match.alternatives == ["state_dict module.encoder_k.*"]
    assert "alternatives: state_dict module.encoder_k.*" in match.report()


def test_find_tensors_refuses_another_architecture():
    with pytest.raises(UserError, match=r"no tensor of the backbone \(conv1.* 1 of the checkpoint \(transformer.wte\)"):
        find({"state_dict": {"transformer.wte": torch.ones(3)}})


def test_find_tensors_does_without_batch_norm_counters():
    tensors = {k: v for k, v in trained().state_dict().items() if "num_batches" not in k}
    match = find(tensors)
    assert match.is_complete
    assert match.skipped
    assert all("num_batches_tracked" in k for k in match.skipped)


def test_match_report_counts_and_names_each_kind():
    tensors = dict(trained().state_dict())
    del tensors["layer2.0.conv1.weight"]
    tensors["layer3.0.conv1.weight"] = torch.ones(1, 2, 3, 3)
    report = find({"state_dict": add_prefix("encoder.", tensors | {"fc.weight": torch.ones(2)})}).report()
    lines = {line.split()[0]: line for line in report.splitlines()}
    assert lines["loaded"].split()[1] == str(len(tensors) - 1)
    assert lines["missing"].split()[1:] == ["1", "layer2.0.conv1.weight"]
    assert lines["unexpected"].split()[1:] == ["1", "fc.weight"]
    assert "layer3.0.conv1.weight (1, 2, 3, 3) instead of" in lines["mismatched"]
    assert "found under state_dict encoder.*" in report


def test_match_without_tensors_is_not_complete():
    everything = tuple(trained().state_dict())
    assert not find(trained().state_dict() | {}, KeyFlags("", "", "x.", everything)).is_complete


def test_key_flags_collects_the_four_flags():
    args = Namespace(state_dict_key="a.b", remove_prefix="c.", append_prefix="d.", skip_layers=["fc"], epochs=3)
    assert key_flags(args) == KeyFlags("a.b", "c.", "d.", ("fc",))


@pytest.mark.parametrize(
    ("flags", "explicit"),
    [(KeyFlags(), False), (KeyFlags(skip_layers=("fc",)), False), (KeyFlags(""), True),
     (KeyFlags(remove_prefix="a."), True), (KeyFlags(append_prefix="a."), True)],
)  # fmt: skip
def test_key_flags_are_explicit_when_they_say_where_tensors_are(flags, explicit):
    assert flags.is_explicit == explicit


def test_tensor_dicts_yields_the_path_of_every_dictionary_with_tensors():
    one = torch.ones(1)
    tree = {"x": one, "a": {"b": {"y": one, "note": "text"}, "c": 3}, 0: {1: one}}
    assert {path: list(tensors) for path, tensors in tensor_dicts(tree)} == {"": ["x"], "a.b": ["y"], "0": ["1"]}


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_check_finite_names_the_tensors(value):
    tensors = copy.deepcopy(dict(trained().state_dict()))
    check_finite(tensors, "w.pth")
    tensors["layer1.0.bn1.weight"][0] = float(value)
    with pytest.raises(UserError, match=r"w.pth: 1 tensors contain NaN or infinity \(layer1.0.bn1.weight\)"):
        check_finite(tensors, "w.pth")
