"""Reading of weights from any tool's checkpoint into a backbone, and writing under the names of its own library."""

import re
import zipfile
import zlib
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

from backbones.build import build_backbone, choose_stem
from backbones.match_keys import KeyFlags, Match, check_finite, find_tensors, key_flags, tensor_dicts
from utils.distributed import rank_zero_print
from utils.errors import UserError
from utils.files import entry, read_json, replaced_atomically, typed_path
from utils.names import shown
from utils.plan import BackboneConfig

# Facts about a backbone that its file carries, as text.
METADATA_KEYS = (
    "method", "dataset", "backbone", "stem", "zero_init_residual", "large_size", "num_classes", "seed", "patch_size",
    "drop_path", "pool",
)  # fmt: skip
PLAN_KEYS: dict[str, type] = {  # keys of args.json that the facts are taken from -> type
    "plan.method": str, "plan.seed": int, "plan.training_set.name": str, "plan.training_set.num_classes": int,
    "plan.backbone.name": str, "plan.backbone.stem": str, "plan.backbone.zero_init_residual": bool,
    "plan.views.large_size": int,
}  # fmt: skip
NUMBER = r"\d{1,18}"
FACTS = {  # key -> (what it must be, as a pattern); the other values are names that are looked up
    "stem": ("small or imagenet", "small|imagenet"), "zero_init_residual": ("True or False", "True|False"),
    "large_size": ("a side of 1 to 4 digits", r"\d{1,4}"), "num_classes": ("a number", NUMBER),
    "seed": ("a number", NUMBER), "patch_size": ("a side of 1 to 3 digits, or None", r"[1-9]\d{0,2}|None"),
    "drop_path": ("a number below 1", r"0(\.\d+)?|[1-9](\.\d+)?e-\d{1,3}"),
    "pool": ("token, avg or None", "token|avg|None"),
}  # fmt: skip
RUN_FILE, HUB_FILE = "backbone.safetensors", "model.safetensors"  # the same name in every folder
CHECKSUM = "crc32"  # in the metadata of a .safetensors file, of everything else in it
# Plain containers that published checkpoints carry beside their tensors; none of them runs code when it is read.
SAFE_GLOBALS: list[Any] = [
    Namespace,
    np.dtype,
    np.float64().__reduce__()[0],
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")},
]


def backbone_metadata(plan: Mapping[str, Any]) -> dict[str, str]:
    """Collect the facts that are needed to use the weights, all as text, under METADATA_KEYS.

    plan: a Plan as nested dictionaries, as args.json holds it.
    """
    facts = (
        plan["method"],
        plan["training_set"]["name"],
        plan["backbone"]["name"],
        plan["backbone"]["stem"],
        plan["backbone"]["zero_init_residual"],
        plan["views"]["large_size"],
        plan["training_set"]["num_classes"],
        plan["seed"],
        plan["backbone"].get("patch_size"),  # older runs have none of these three
        plan["backbone"].get("drop_path", 0.0),
        plan["backbone"].get("pool"),
    )
    return {name: str(fact) for name, fact in zip(METADATA_KEYS, facts, strict=True)}


def save_backbone(path: Path, backbone: nn.Module, metadata: dict[str, str]) -> None:
    """Write the backbone's tensors atomically as .safetensors, under the names of its own library."""
    save_tensors(path, backbone.state_dict(), metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors atomically as .safetensors."""
    with replaced_atomically(path) as part:
        own = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(own, part, metadata | {CHECKSUM: _checksum(own, metadata)})


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of metadata, names, types, shapes and bytes, in hexadecimal: finds what a disk or a copy changed."""
    crc = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def find_weights(source: str) -> Path:
    """Return the file of weights behind a path: the file itself, or a run folder's backbone, else its checkpoint."""
    path = typed_path(source)
    if path.is_dir():
        files = [path / name for name in (RUN_FILE, "last.ckpt") if (path / name).is_file()]
        if not files:
            raise UserError(
                f"{shown(source)} has no backbone.safetensors and no last.ckpt; name a run folder or a file"
            )
        return files[0]
    if not path.is_file():
        raise UserError(f"{shown(source)} does not exist; name a run folder or a file of weights")
    return path


def read_tree(path: Path) -> Mapping[str, Any]:
    """Read the (nested) dictionary of tensors in a .safetensors file or a torch checkpoint, without running code."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # truncated, tampered with, or a pickle of code: torch raises many kinds
        # What is no pickle at all ends in errors without words, as KeyError: 101.
        raise UserError(_unreadable(path, str(e) if " " in str(e) else "it is not of torch.save")) from e
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a dictionary of tensors; save a state_dict")
    return tree


def _check_archive(path: Path) -> None:
    """Compare the checksums in the archive that torch.save writes, which torch.load ignores."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # as older versions of torch wrote: there are none
            return
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} has a wrong checksum")


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of the file; those of a file that a run wrote must have their checksum."""
    metadata = _safetensors_metadata(path)
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except Exception as e:  # a header that promises what the file does not hold: many kinds
        raise UserError(f"{path} is not a readable .safetensors file ({e}); it may be truncated, copy it again") from e
    if (expected := metadata.pop(CHECKSUM, None)) and expected != _checksum(tensors, metadata):
        raise UserError(f"{path} is damaged or was changed: its checksum is not that of its content; copy it again")
    return tensors


def _unreadable(path: Path, reason: str) -> str:
    """Error message for a torch file; a pickled object comes with the two ways to extract its tensors."""
    pickled = re.search(r"(?:GLOBAL|global) (\w[\w.]*)", reason)
    if "eights only load failed" not in reason or not pickled:
        first_line = next(iter(reason.splitlines()), "empty")
        return f"{path} is not a readable checkpoint ({first_line}); it may be truncated, copy it again"
    return (
        f"{path} contains pickled object {pickled[1]}; refused (weights_only). If you trust the file, extract its "
        f"tensors in the project that made it; from a pickled nn.Module: "
        f'`torch.save(torch.load(FILE, weights_only=False).state_dict(), "weights.pth")`; from a dictionary with '
        f"other objects beside its state_dict: "
        f'`torch.save({{"state_dict": torch.load(FILE, weights_only=False)["state_dict"]}}, "weights.pth")`'
    )


def read_metadata(path: Path) -> dict[str, str]:
    """Read the facts of METADATA_KEYS about the backbone in a file; {} for a file that Lookalike did not write.

    A file that it exported has a card in its header, which holds these facts beside others.
    """
    if path.suffix != ".safetensors":
        beside = path.parent / "args.json"
        if path.suffix != ".ckpt" or not beside.is_file():
            return {}
        return _recorded_metadata(beside)
    facts = _safetensors_metadata(path)
    facts.pop(CHECKSUM, None)
    if not facts.keys() & {"method", "backbone"}:  # other tools write headers too, as {"format": "pt"}
        return {}
    _check_facts(path, facts)
    return facts


def _safetensors_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path} is not a readable .safetensors file ({e}); it may be truncated, copy it again") from e


def _recorded_metadata(path: Path) -> dict[str, str]:
    """The facts of METADATA_KEYS in the args.json of a pretraining run; {} in that of another command."""
    content = read_json(path)
    if not content.get("plan"):
        return {}
    for key, kind in PLAN_KEYS.items():
        entry(path, content, key, kind)
    facts = backbone_metadata(content["plan"])
    _check_facts(path, facts)
    return facts


def _check_facts(path: Path, facts: Mapping[str, str]) -> None:
    """Refuse numbers and words of METADATA_KEYS that no run writes."""
    for name, (requirement, pattern) in FACTS.items():
        if name in facts and not re.fullmatch(pattern, facts[name], re.ASCII):
            raise UserError(f"{path} has {name} {facts[name][:40]!r}, needs {requirement}; copy it again")


def guess_stem(tree: Mapping[str, Any]) -> str | None:
    """Tell "small" from "imagenet" by the kernel of a ResNet's first convolution; None without such a convolution."""
    sides: set[int] = set()
    for _, tensors in tensor_dicts(tree):
        for key, v in tensors.items():
            if v.ndim == 4 and v.shape[1] == 3 and f".{key}".endswith((".conv1.weight", ".0.weight")):
                sides.add(int(v.shape[-1]))
    return {7: "imagenet", 3: "small"}.get(sides.pop()) if len(sides) == 1 else None


@dataclass(frozen=True)
class Weights:
    """A file of weights in memory: its path, its (nested) tensors, and its metadata ({} unless Lookalike wrote it)."""

    path: Path
    tree: Mapping[str, Any]
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        """Display name: that of the run folder or of a folder in the Hub's form, else the file's without its ending."""
        in_folder = self.in_run_folder or self.path.name == HUB_FILE
        return self.path.parent.resolve().name if in_folder else self.path.stem

    @property
    def in_run_folder(self) -> bool:
        """Whether the file is one that a run keeps in its folder, and not an exported one or that of another tool."""
        return bool(self.metadata) and (self.path.name == RUN_FILE or self.path.suffix == ".ckpt")

    def default_output_dir(self, output: str) -> Path:
        """Return the folder for results about these weights: their run folder, or `output` for other files."""
        return self.path.parent if self.in_run_folder else Path(output)


def open_weights(source: str) -> Weights:
    """Read the weights of a run folder, a checkpoint or a .safetensors file of any tool."""
    path = find_weights(source)
    return Weights(path, read_tree(path), read_metadata(path))


def open_all_weights(sources: Sequence[str]) -> list[Weights]:
    """Read several files of weights; two with one display name are an error."""
    opened = [open_weights(source) for source in sources]
    names = [weights.name for weights in opened]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--pretrained_feature_extractor names {repeated[0]} twice; rename one of the folders or files")
    return opened


def choose_size(requested: int | None, sources: Sequence[Weights], default: int) -> int:
    """Return the side of an image in pixels: as requested, else that of the pretraining, else the default."""
    sizes = {int(weights.metadata.get("large_size", default)) for weights in sources}
    if requested:
        return requested
    if len(sizes) > 1:
        raise UserError(f"the weights were trained on views of {sorted(sizes)} pixels; choose one with --large_size")
    return sizes.pop()


def stem_of(requested_stem: str, backbone: str, weights: Weights, size: int) -> str:
    """Return the stem of the weights, "small" or "imagenet": from their metadata, else as requested, else guessed.

    requested_stem: --stem; for "auto" the first convolution of the tensors decides, else the size of the views.
    """
    return weights.metadata.get("stem") or choose_stem(requested_stem, backbone, size, guess_stem(weights.tree))[0]


def initial_config(
    requested_stem: str,
    backbone: str,
    weights: Weights,
    size: int,
    patch_size: int | None = None,
    pool: str | None = None,
) -> BackboneConfig:
    """The backbone as the run that made the weights initialized it, without drop path, which training alone has.

    For weights of other tools without zero init. patch_size and pool: as requested, else those of the run.
    """
    trained_patch, trained_pool = (_fact(weights, name) for name in ("patch_size", "pool"))
    return BackboneConfig(
        backbone,
        stem_of(requested_stem, backbone, weights, size),
        zero_init_residual=weights.metadata.get("zero_init_residual") == "True",
        patch_size=patch_size or (int(trained_patch) if trained_patch else None),
        pool=pool or trained_pool,
    )


def requested_config(args: Namespace, weights: Weights, size: int) -> BackboneConfig:
    """The backbone to load the weights into, as they and the flags have it; flags that contradict them are refused."""
    config = initial_config(args.stem, args.backbone, weights, size, args.patch_size, args.pool)
    check_compatible(weights, args.backbone, args.stem, config.stem, args.patch_size)
    return config


def load_requested(args: Namespace, weights: Weights, size: int) -> nn.Module:
    """The backbone of `requested_config` with the weights; prints the report.

    Layers that --skip_layers leaves random are drawn from --seed, the same ones on every process.
    """
    torch.manual_seed(args.seed)
    network, _ = build_backbone(requested_config(args, weights, size), size)
    load_backbone(weights, network, key_flags(args), rank_zero_print)
    return network


def _fact(weights: Weights, name: str) -> str | None:
    """A fact of the metadata; None where it is missing or says None."""
    value = weights.metadata.get(name)
    return None if value == "None" else value


def load_backbone(
    weights: Weights,
    network: nn.Module,
    flags: KeyFlags | None = None,
    report: Callable[[str], object] = lambda _: None,
    remedy: str = "name the backbone and the --stem of the weights",
) -> Match:
    """Copy the weights into the network; one missing or mismatched tensor is an error and changes nothing.

    report: receives the key-matching report, whether the weights fit or not. remedy: what to do where they do not.
    """
    path = weights.path
    try:
        match = find_tensors(weights.tree, network, flags or KeyFlags())
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    report(f"{path}\n{match.report()}")
    if not match.is_complete:
        raise UserError(
            f"{path} does not fit the backbone: {len(match.tensors)} tensors found under {match.location}, "
            f"{len(match.missing)} missing {match.missing[:3]}, {len(match.unexpected)} unexpected "
            f"{match.unexpected[:3]}, {len(match.mismatched)} of another shape {match.mismatched[:3]}; "
            f"{remedy}"
        )
    check_finite(match.tensors, str(path))
    network.load_state_dict(match.tensors, strict=False)
    return match


def check_compatible(
    weights: Weights, backbone: str, requested_stem: str, stem: str, patch_size: int | None = None
) -> None:
    """Refuse weights of another backbone, stem or patch size than requested; their data set may be any."""
    trained = weights.metadata.get("backbone", backbone)
    if trained != backbone:
        raise UserError(f"{weights.path} holds the weights of {trained}, not of {backbone}; name {trained}")
    if requested_stem not in ("auto", stem):
        raise UserError(f"{weights.path} was trained with the {stem} stem, not {requested_stem}; omit --stem")
    trained_patch = _fact(weights, "patch_size")
    if patch_size and weights.metadata and trained_patch != str(patch_size):
        seen = f"patches of {trained_patch} pixels" if trained_patch else f"the patches of {trained}"
        raise UserError(f"{weights.path} was trained with {seen}; omit --patch_size {patch_size}")


def check_classes(dataset: str, metadata: Mapping[str, str], default_classes: int | None, classes: int) -> None:
    """Refuse a number of classes that shows that the images are not those of the named data set.

    metadata: of weights; it counts only if they were trained on a data set of this name. default_classes: number of
    classes of the data set where its name fixes it. classes: number found on disk, 0 without labels.
    """
    if not classes or default_classes is None:  # every folder of one's own is called custom
        return
    trained_classes = int(metadata.get("num_classes", 0)) if metadata.get("dataset") == dataset else 0
    if trained_classes and trained_classes != classes:
        raise UserError(
            f"{dataset} has {classes} classes here, but the weights were trained on {dataset} with {trained_classes}; "
            f"name the --data_folder, --train_dir and --val_dir of the images that they were trained on"
        )
    if not trained_classes and default_classes != classes:
        raise UserError(
            f"{dataset} has {default_classes} classes, but the folder holds {classes}; name another --data_folder, "
            f"or the data set custom"
        )


def load_pretrained(args: Namespace, backbone: nn.Module) -> None:
    """Load --pretrained_feature_extractor into the backbone, where it is given, and print the report."""
    if args.pretrained_feature_extractor:
        weights = open_weights(args.pretrained_feature_extractor)
        load_backbone(weights, backbone, key_flags(args), rank_zero_print)
