"""Mutated files of weights: each is refused with one line or has the bits that were written; none runs code."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbones.load import open_weights, save_backbone
from runs.checkpoint import AtomicCheckpointIO, read_checkpoint
from tests.helpers.checkpoints import add_prefix, checkpoint
from tests.helpers.fuzzing import Fuzzing
from tests.helpers.mutations import apply, mutations
from tests.helpers.networks import Flat
from tests.helpers.runs import equal

FACTS = {"method": "simclr", "dataset": "digits", "backbone": "resnet18", "stem": "small", "zero_init_residual": "True",
         "large_size": "16", "num_classes": "10", "seed": "3", "epochs": "2", "steps": "10"}  # fmt: skip


class Code:
    """An object whose pickle creates a file when it is read."""

    def __reduce__(self):
        return open, ("executed", "w")


@functools.cache
def originals() -> dict[str, bytes]:
    """File name -> content: of a run, its resumption, and of other tools."""
    torch.manual_seed(0)
    network, folder = Flat(12), Path(tempfile.mkdtemp())
    run = {"state_dict": add_prefix("backbone.", network.state_dict()), "global_step": 5, "run": "0" * 32,
           "optimizer_states": [{"state": {0: {"momentum_buffer": torch.randn(6, 12)}}}], "loops": {}}  # fmt: skip
    AtomicCheckpointIO().save_checkpoint(run, folder / "last.ckpt")
    save_backbone(folder / "backbone.safetensors", network, FACTS)
    for tool in ("MoCo", "timm"):
        torch.save(checkpoint(tool, network), folder / f"{tool}.pth")
    torch.save({"state_dict": network.state_dict(), "other": Code()}, folder / "code.pth")
    torch.save({"other": Code()}, folder / "old.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(path: Path):
    """What a run or an evaluation gets from a file, in the two ways that there are."""
    weights = open_weights(str(path))
    facts = {name: weights.metadata.get(name) for name in FACTS}
    return [dict(weights.tree), facts] + ([read_checkpoint(path)] if path.name == "last.ckpt" else [])


def fuzz(name: str, number: int, root: Path, monkeypatch, **options) -> Fuzzing:
    """The counts of `number` mutated files, read in a folder in which nothing else may change."""
    output = root / "here" / "out"
    output.mkdir(parents=True)
    monkeypatch.chdir(root / "here")
    written = {}
    for file, content in originals().items():
        (output / file).write_bytes(content)
        written[file] = None if file in ("code.pth", "old.pth") else read(output / file)
    counts = Fuzzing(name, root, output)

    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck), database=None, **options)
    @given(st.sampled_from(sorted(originals())), mutations())
    def try_one(file, changes):
        content, path = apply(changes, originals()[file]), output / file
        path.write_bytes(content)
        found = []
        message = counts.call(lambda: found.append(read(path)))
        if message is None and content != originals()[file]:
            assert written[file] is not None, "a pickle of code was read"
            if path.suffix == ".safetensors" and b'"crc32":"' not in content:
                return  # a file without the checksum is one of another tool, which has none
            counts.equal += 1
            assert equal(found[0], written[file]), "other bits"

    counts.equal = 0
    try:
        try_one()
    finally:
        print(counts.report(), f" equal bits {counts.equal}")
    return counts


def test_files_of_weights_without_mutations_are_read_and_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = Fuzzing("originals", tmp_path, tmp_path / "none")
    for file, content in originals().items():
        Path(file).write_bytes(content)
    counts = Fuzzing("originals", tmp_path, tmp_path / "none")
    for file in originals():
        message = counts.call(lambda: read(tmp_path / file))  # noqa: B023  # called at once
        assert (message is None) == (file not in ("code.pth", "old.pth")), message


def test_mutated_files_of_weights_are_refused_or_have_equal_bits(tmp_path, monkeypatch):
    counts = fuzz("files of weights", 200, tmp_path, monkeypatch, derandomize=True)
    assert counts.inputs >= 200
    assert counts.refused > 100


@pytest.mark.parametrize("file", ["last.ckpt", "backbone.safetensors", "MoCo.pth"])
def test_a_flipped_bit_anywhere_in_a_file_of_weights_is_refused_or_changes_no_bit(tmp_path, file):
    path, content = tmp_path / file, originals()[file]
    path.write_bytes(content)
    written, counts = read(path), Fuzzing(file, tmp_path, tmp_path)
    for at in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        found = []
        if counts.call(lambda: found.append(read(path))) is None:  # noqa: B023  # called at once
            assert equal(found[0], written), at
    assert counts.refused > 20


@pytest.mark.slow
def test_thousands_of_mutated_files_of_weights_are_refused_or_have_equal_bits(tmp_path, monkeypatch, capsys):
    with capsys.disabled():
        print()
        counts = fuzz("mutated files of weights", 10_000, tmp_path, monkeypatch)
    assert counts.inputs >= 10_000
