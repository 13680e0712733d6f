"""Matching of the tensor names in a checkpoint with those of a backbone."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utils.errors import UserError, did_you_mean
from utils.files import EVAL_BACKBONE
from utils.vision_transformer import resample_positions

IGNORED_TENSORS = ("num_batches_tracked",)  # counters of batch norm, which not every checkpoint has
PREFERRED = ("teacher",)  # DINO evaluates its teacher, which lies beside the student at the top of the file
SECONDARY = ("momentum", "target", "teacher", "encoder_k", "ema")  # parts of names, taken where nothing else fits
ANCHORS = 8  # tensors by whose names a prefix is found: one that is missing does not hide the rest
PREVIEW = 3  # names per line of a report


@dataclass(frozen=True)
class KeyFlags:
    """Values of --state_dict_key (None: auto-detect), --remove_prefix, --append_prefix and --skip_layers."""

    state_dict_key: str | None = None
    remove_prefix: str = ""
    append_prefix: str = ""
    skip_layers: tuple[str, ...] = IGNORED_TENSORS

    @property
    def is_explicit(self) -> bool:
        """True if the flags name the location of the tensors, so that nothing is detected."""
        return self.state_dict_key is not None or bool(self.remove_prefix or self.append_prefix)


def key_flags(args: Namespace) -> KeyFlags:
    """Collect the four checkpoint-key flags of a command line."""
    return KeyFlags(args.state_dict_key, args.remove_prefix, args.append_prefix, tuple(args.skip_layers))


@dataclass
class Match:
    """Comparison of a backbone with the tensors at one location of a checkpoint.

    location: dotted path of the dictionary and prefix of its keys, as in "state_dict module.encoder_q.*".
    tensors: name in the backbone -> tensor of the checkpoint; resampled: those of position embeddings that were
    interpolated, with both shapes. missing, mismatched (another shape) and skipped (on request) are names of the
    backbone, unexpected are names of the checkpoint. alternatives: other locations that fit.
    """

    location: str
    tensors: dict[str, Tensor]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    alternatives: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """True if every tensor of the backbone was found with its shape, or skipped on request."""
        return bool(self.tensors) and not self.missing and not self.mismatched

    def report(self) -> str:
        """Format the counts and the first names of each kind, one kind per line."""
        rows = {"loaded": list(self.tensors), "missing": self.missing, "unexpected": self.unexpected,
                "mismatched": self.mismatched, "skipped": self.skipped}  # fmt: skip
        lines = [f"  {kind:<11}{len(names):>5}  {_preview(names)}".rstrip() for kind, names in rows.items()]
        if self.resampled:
            lines.append(f"  note: position embeddings interpolated for this image size: {', '.join(self.resampled)}")
        others = f"; alternatives: {', '.join(self.alternatives)}" if self.alternatives else ""
        return "\n".join([*lines, f"  found under {self.location}{others}"])


def find_tensors(tree: Mapping[str, object], backbone: nn.Module, flags: KeyFlags) -> Match:
    """Find the location in a (nested) dictionary that fills the backbone, or else the one that comes closest.

    Every dictionary of tensors, every prefix and the numbered names of nn.Sequential are tried. Explicit flags switch
    the search off. Raises UserError where no name of the backbone occurs.
    """
    prefix = tree.get(EVAL_BACKBONE, "backbone.")
    if not flags.is_explicit and isinstance(prefix, str) and prefix != "backbone.":
        flags = KeyFlags("state_dict", prefix, "", flags.skip_layers)  # a teacher's weights, not the student's
    if flags.is_explicit:
        return _match_explicit(tree, backbone, flags)
    expected = backbone.state_dict()
    matches = [
        _match(_strip_prefix(tensors, prefix), names, backbone, flags.skip_layers, _location(path, prefix))
        for path, tensors in tensor_dicts(tree)
        for names in (dict(zip(expected, expected, strict=True)), _sequential_names(backbone))
        for prefix in _prefixes(tensors, names)
    ]
    if not matches:
        keys = [key for _, tensors in tensor_dicts(tree) for key in tensors]
        raise UserError(
            f"no tensor of the backbone ({_preview(list(expected))}) among the {len(keys)} of the checkpoint "
            f"({_preview(keys)}); name the backbone that the weights belong to, or their location by --state_dict_key "
            f"and --remove_prefix"
        )
    best, *rest = sorted(matches, key=lambda m: (not m.is_complete, -len(m.tensors), _preference(m.location)))
    if best.is_complete:
        best.alternatives = [m.location for m in rest if m.is_complete and m.location != best.location]
    return best


def _match_explicit(tree: Mapping[str, object], backbone: nn.Module, flags: KeyFlags) -> Match:
    """Match the tensors under --state_dict_key, with --remove_prefix stripped and --append_prefix prepended.

    Names that do not begin with --remove_prefix are unexpected. Raises UserError where none does.
    """
    level: object = tree
    path = [part for part in (flags.state_dict_key or "").split(".") if part]
    for i, part in enumerate(path):
        if not isinstance(level, Mapping) or part not in level:
            known = [str(key) for key in level] if isinstance(level, Mapping) else []
            parent = ".".join(path[:i]) or "the file"
            raise UserError(
                f"--state_dict_key {flags.state_dict_key}: no {part!r} in {parent}{did_you_mean(part, known)}; "
                f"choose one of its keys: {_preview(known) or 'none'}"
            )
        level = level[part]
    tensors = _tensors_in(level) if isinstance(level, Mapping) else {}
    stripped = _strip_prefix(tensors, flags.remove_prefix)
    others = [key for key in tensors if not key.startswith(flags.remove_prefix)]
    if flags.remove_prefix and not stripped:
        place = f"under {'.'.join(path)}" if path else "at the top of the file"
        raise UserError(
            f"no name {place} begins with {flags.remove_prefix!r} ({_preview(others) or 'none'}); correct "
            f"--remove_prefix, or the --state_dict_key that it is looked for under"
        )
    renamed = {flags.append_prefix + key: tensor for key, tensor in stripped.items()}
    expected = backbone.state_dict()
    names = dict(zip(expected, expected, strict=True))
    location = _location(".".join(path), flags.remove_prefix)
    match = _match(renamed, names, backbone, flags.skip_layers, location)
    match.unexpected += others
    return match


def tensor_dicts(tree: object, path: str = "", depth: int = 6) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (dotted path, its tensors) of every dictionary in the tree that holds tensors, `depth` levels down."""
    if not isinstance(tree, Mapping) or not depth:
        return
    if tensors := _tensors_in(tree):
        yield path, tensors
    for key, value in tree.items():
        yield from tensor_dicts(value, f"{path}.{key}" if path else str(key), depth - 1)


def _tensors_in(level: Mapping[object, object]) -> dict[str, Tensor]:
    return {str(key): value for key, value in level.items() if isinstance(value, Tensor)}


def _prefixes(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> set[str]:
    """Collect the text before the names of ANCHORS tensors of the backbone, evenly chosen."""
    checkpoint_names = list(names.values())
    anchors = checkpoint_names[:: max(1, len(checkpoint_names) // ANCHORS)]
    return {key[: -len(a)] for a in anchors for key in tensors if key == a or key.endswith(f".{a}")}


def _sequential_names(backbone: nn.Module) -> dict[str, str]:
    """Map each tensor name to its name in nn.Sequential(*backbone.children()), as in Lightly's examples."""
    number = {child: str(i) for i, (child, _) in enumerate(backbone.named_children())}
    return {k: ".".join([number.get(k.split(".")[0], "?"), *k.split(".")[1:]]) for k in backbone.state_dict()}


def _strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Keep the tensors whose names begin with the prefix, without it."""
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def _match(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    backbone: nn.Module,
    skip_layers: tuple[str, ...],
    location: str,
) -> Match:
    """Compare tensors of a checkpoint with the backbone's; names: name in the backbone -> name in the checkpoint."""
    match = Match(location, {})
    for name, tensor in backbone.state_dict().items():
        key = names[name]
        skip = _contains_any(name, skip_layers)
        # Counters are loaded where the checkpoint has them; tensors that the user names are skipped in any case.
        if skip and not (_contains_any(name, IGNORED_TENSORS) and key in tensors):
            match.skipped.append(name)
        elif key not in tensors:
            match.missing.append(name)
        elif tensors[key].shape != tensor.shape:
            shapes = tuple(tensors[key].shape), tuple(tensor.shape)
            if (resampled := resample_positions(backbone, name, tensors[key])) is None:
                match.mismatched.append(f"{name} {shapes[0]} instead of {shapes[1]}")
                continue
            match.tensors[name] = resampled
            match.resampled.append(f"{name} {shapes[0]} to {shapes[1]}")
        else:
            match.tensors[name] = tensors[key]
    used = set(names.values())
    match.unexpected = [key for key in tensors if key not in used]
    return match


def _contains_any(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def _location(path: str, prefix: str) -> str:
    return " ".join(part for part in (path, f"{prefix}*" if prefix else "*") if part)


def _preference(location: str) -> tuple[bool, bool, str]:
    """Sort key of equally good locations: DINO's teacher first, then all that is no teacher, then the shortest."""
    preferred = location.split(" ")[0] in PREFERRED
    return (not preferred, _contains_any(location, SECONDARY), f"{len(location):04d}{location}")


def _preview(names: list[str]) -> str:
    return ", ".join(names[:PREVIEW]) + (f" and {len(names) - PREVIEW} more" if len(names) > PREVIEW else "")


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity: their features would mean nothing."""
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise UserError(
            f"{source}: {len(bad)} tensors contain NaN or infinity ({_preview(bad)}); use an earlier checkpoint"
        )
