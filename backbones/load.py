"""Weights in from anywhere, out under the names of their own library."""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backbones.build import choose_stem
from backbones.match_keys import KeyFlags, Match, check_finite, find_tensors, key_flags, levels
from utils.distributed import rank_zero_print
from utils.errors import UserError
from utils.files import read_json

METADATA_KEYS = (
    "method",
    "dataset",
    "backbone",
    "stem",
    "large_size",
    "num_classes",
    "seed",
)  # what a run says of its backbone
# Plain containers that published checkpoints carry beside their tensors; none of them runs code when it is read.
SAFE_GLOBALS: list[Any] = [Namespace, np.dtype, np.float64().__reduce__()[0],
            *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")}]  # fmt: skip


def backbone_metadata(plan: Mapping[str, Any]) -> dict[str, str]:
    """Facts that are needed to use the weights, as safetensors metadata: all text, under METADATA_KEYS.

    plan: as args.json holds it, a dictionary of dictionaries.
    """
    facts = (
        plan["method"],
        plan["training_set"]["name"],
        plan["backbone"]["name"],
        plan["backbone"]["stem"],
        plan["views"]["large_size"],
        plan["training_set"]["num_classes"],
        plan["seed"],
    )
    return {name: str(fact) for name, fact in zip(METADATA_KEYS, facts, strict=True)}


def save_backbone(path: Path, backbone: nn.Module, metadata: dict[str, str]) -> None:
    """The backbone's tensors under the names of its own library, written atomically."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata)
    os.replace(part, path)


def find_weights(source: str) -> Path:
    """The file behind a run folder (its backbone, else its checkpoint) or a path."""
    path = Path(source).expanduser()
    if path.is_dir():
        here = [path / name for name in ("backbone.safetensors", "last.ckpt")]
        if not any(p.is_file() for p in here):
            raise UserError(f"{source} has no backbone.safetensors and no last.ckpt; name a run folder or a file")
        return next(p for p in here if p.is_file())
    if not path.is_file():
        raise UserError(f"{source} does not exist; name a run folder or a file of weights")
    return path


def read_tree(path: Path) -> Mapping[str, Any]:
    """The (nested) dictionary of tensors in a .safetensors file or a torch checkpoint, read without running code."""
    if path.suffix == ".safetensors":
        read_metadata(path)  # readable at all
        return load_file(path)
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # truncated, tampered with, or wanting to run code: torch raises many kinds
        raise UserError(_unreadable(path, str(e))) from e
    if isinstance(tree, Tensor) or not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a dictionary of tensors; save a state_dict")
    return tree


def _unreadable(path: Path, reason: str) -> str:
    wanted = re.search(r"(?:GLOBAL|global) (\w[\w.]*)", reason)
    if "eights only load failed" in reason and wanted:
        return (
            f"{path} is a pickle that wants to run {wanted[1]} and was not opened; where you trust it, keep its "
            f"tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'tensors.pth')"
        )
    return f"{path} is not a readable checkpoint ({next(iter(reason.splitlines()), 'empty')}); is it whole?"


def read_metadata(path: Path) -> dict[str, str]:
    """What a run told of the backbone in this file: method, data set, backbone, stem, size; {} of a foreign file."""
    if path.suffix != ".safetensors":
        beside = path.parent / "args.json"
        if path.suffix != ".ckpt" or not beside.is_file():
            return {}
        plan = read_json(beside).get("plan")
        return backbone_metadata(plan) if plan else {}
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path} is not a readable .safetensors file ({e})") from e


def guess_stem(tree: Mapping[str, Any]) -> str | None:
    """ "small" or "imagenet" by the kernel of the first convolution of a ResNet; None where there is none."""
    sides: set[int] = set()
    for _, tensors in levels(tree):
        for key, v in tensors.items():
            if v.ndim == 4 and v.shape[1] == 3 and f".{key}".endswith((".conv1.weight", ".0.weight")):
                sides.add(int(v.shape[-1]))
    return {7: "imagenet", 3: "small"}.get(sides.pop()) if len(sides) == 1 else None


@dataclass(frozen=True)
class Weights:
    """A file of weights, read: its path, its (nested) tensors, and what a run of ours told of them (else nothing)."""

    path: Path
    tree: Mapping[str, Any]
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        """What tells it from others: the folder of a run, the name of a file."""
        return self.path.parent.name if self.metadata else self.path.stem

    def default_output_dir(self, output: str) -> Path:
        """Where what is made of it is kept: its run folder; for the weights of others the folder of runs."""
        return self.path.parent if self.metadata else Path(output)


def open_weights(source: str) -> Weights:
    """A run folder, a checkpoint or a .safetensors file, ours or anyone's."""
    path = find_weights(source)
    return Weights(path, read_tree(path), read_metadata(path))


def open_all_weights(sources: Sequence[str]) -> list[Weights]:
    """Several of them, which must be told apart in a table."""
    opened = [open_weights(source) for source in sources]
    names = [weights.name for weights in opened]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--pretrained_feature_extractor names {twice[0]} twice; rename one of the folders or files")
    return opened


def choose_size(requested: int | None, sources: Sequence[Weights], default: int) -> int:
    """Side of an image in pixels: --large_size, else that of the pretraining, which is one for all, else `default`."""
    sizes = {int(weights.metadata.get("large_size", default)) for weights in sources}
    if len(sizes) > 1 and not requested:
        raise UserError(f"the weights were trained on views of {sorted(sizes)} pixels; choose one by --large_size")
    return requested or sizes.pop()


def stem_of(requested_stem: str, backbone: str, weights: Weights, size: int) -> str:
    """ "small" or "imagenet": as a run told, else as the tensors look, else as --stem says."""
    return weights.metadata.get("stem") or choose_stem(requested_stem, backbone, size, guess_stem(weights.tree))[0]


def load_backbone(
    weights: Weights, backbone: nn.Module, flags: KeyFlags | None = None, say: Callable[[str], Any] = lambda _: None
) -> Match:
    """Fill the backbone. `say` is given the report in every case; one tensor missing or misshapen is an error."""
    path = weights.path
    try:
        match = find_tensors(weights.tree, backbone, flags or KeyFlags())
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    say(f"{path}\n{match.table()}")
    if not match.complete:
        raise UserError(
            f"{path} does not fit the backbone: {len(match.tensors)} tensors found under {match.where}, "
            f"{len(match.missing)} missing {match.missing[:3]}, {len(match.unexpected)} unexpected "
            f"{match.unexpected[:3]}, {len(match.mismatched)} of another shape {match.mismatched[:3]}; "
            f"name the backbone and --stem that it has"
        )
    check_finite(match.tensors, str(path))
    backbone.load_state_dict(match.tensors, strict=False)
    return match


def check_compatible(weights: Weights, backbone: str, requested_stem: str, stem: str) -> None:
    """Refuse weights of another backbone or stem than named."""
    path, metadata = weights.path, weights.metadata
    if metadata.get("backbone", backbone) != backbone:
        raise UserError(f"{path} holds a {metadata['backbone']}, not a {backbone}; name that backbone")
    if requested_stem not in ("auto", stem):
        raise UserError(f"{path} was trained with the {stem} stem, not {requested_stem}; leave --stem out")


def check_classes(dataset: str, metadata: Mapping[str, str], default_classes: int | None, classes: int) -> None:
    """Refuse another number of classes than the same data set had in pretraining, or else usually has."""
    if not classes:
        return
    pretrained = int(metadata.get("num_classes", 0)) if metadata.get("dataset") == dataset else 0
    if pretrained and pretrained != classes:
        raise UserError(
            f"{dataset} has {classes} classes here, but the weights were trained on one of {pretrained}; name its "
            f"folder, or call this data set custom"
        )
    if not metadata and default_classes and default_classes != classes:
        raise UserError(
            f"{dataset} has {default_classes} classes, but {classes} are here; name another folder, or call it custom"
        )


def load_pretrained(args: Namespace, backbone: nn.Module) -> None:
    """Fill the backbone from --pretrained_feature_extractor, where it is given."""
    if args.pretrained_feature_extractor:
        weights = open_weights(args.pretrained_feature_extractor)
        load_backbone(weights, backbone, key_flags(args), rank_zero_print)
