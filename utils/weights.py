"""Weights out to anyone, and in again."""

import os
from argparse import Namespace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from utils.errors import UserError


def describe_backbone(args: Namespace) -> dict[str, str]:
    """What somebody needs to know to use the weights: safetensors metadata, all text."""
    names = ("method", "dataset", "backbone", "used_stem", "large_size", "seed")
    return {name: str(getattr(args, name)) for name in names}


def save_backbone(path: Path, backbone: nn.Module, metadata: dict[str, str]) -> None:
    """The backbone's tensors under the names of its own library, written atomically."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata)
    os.replace(part, path)


def find_weights(source: str) -> Path:
    """The .safetensors file behind a run folder or a path."""
    path = Path(source)
    if path.is_dir():
        path = path / "backbone.safetensors"
        if not path.exists():
            raise UserError(f"{source} has no backbone.safetensors; name a run folder that main_contrastive.py wrote")
    if not path.is_file():
        raise UserError(f"{source} does not exist; name a run folder or a .safetensors file")
    return path


def read_metadata(path: Path) -> dict[str, str]:
    """What `describe_backbone` wrote, and where training stood."""
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path} is not a readable .safetensors file ({e})") from e


def load_backbone(path: Path, backbone: nn.Module) -> None:
    """Load every tensor of the backbone; one that is missing, left over or misshapen is an error."""
    read_metadata(path)  # readable at all
    tensors, wanted = load_file(path), backbone.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    wrong = [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    if missing or extra or wrong:
        raise UserError(
            f"{path} does not fit the backbone: {len(missing)} tensors missing {missing[:3]}, {len(extra)} unexpected "
            f"{extra[:3]}, {len(wrong)} of another shape {wrong[:3]}; name the backbone and --stem it was trained with"
        )
    backbone.load_state_dict(tensors)
