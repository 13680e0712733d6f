"""Whose tensors are these: the names in a foreign checkpoint matched with those of a backbone."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError, did_you_mean

SKIPPED = ("num_batches_tracked",)  # what counts batches is no weight
FIRST = ("teacher",)  # DINO evaluates its teacher; it lies beside the student at the top of the file
LATER = ("momentum", "target", "teacher", "encoder_k", "ema")  # parts of names: taken where nothing else fits
ANCHORS = 8  # tensors by whose names a prefix is found: one that is missing does not hide the rest
SHOWN = 3  # names per line of a report


@dataclass(frozen=True)
class KeyFlags:
    """--state_dict_key (None: look for it), --remove_prefix, --append_prefix, --skip_layers, as typed."""

    state_dict_key: str | None = None
    remove_prefix: str = ""
    append_prefix: str = ""
    skip_layers: tuple[str, ...] = SKIPPED

    @property
    def given(self) -> bool:
        """Whether the user says where the tensors are; else they are looked for."""
        return self.state_dict_key is not None or bool(self.remove_prefix or self.append_prefix)


def key_flags(args: Namespace) -> KeyFlags:
    return KeyFlags(args.state_dict_key, args.remove_prefix, args.append_prefix, tuple(args.skip_layers))


@dataclass
class Match:
    """What of a backbone was found in one place of a file.

    tensors: name in the backbone -> tensor. Lists of names: missing and mismatched (another shape) of the backbone,
    unexpected of the file, skipped on request.
    """

    where: str
    tensors: dict[str, Tensor]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.tensors) and not self.missing and not self.mismatched

    def table(self) -> str:
        """Counts and first names, a line each."""
        rows = {"loaded": list(self.tensors), "missing": self.missing, "unexpected": self.unexpected,
                "mismatched": self.mismatched, "skipped": self.skipped}  # fmt: skip
        lines = [f"  {name:<11}{len(names):>5}  {_some(names)}".rstrip() for name, names in rows.items()]
        lines += [f"  found under {self.where}" + (f"; {', '.join(self.also)} would fit too" if self.also else "")]
        return "\n".join(lines)


def find_tensors(tree: Mapping[str, Any], backbone: nn.Module, flags: KeyFlags) -> Match:
    """The place in a (nested) dictionary that fills the backbone; where none does, the one that comes closest."""
    if flags.given:
        return _as_told(tree, backbone, flags)
    wanted = backbone.state_dict()
    found = [
        _match(_under(tensors, prefix), names, wanted, flags.skip_layers, _place(path, prefix))
        for path, tensors in levels(tree)
        for names in (dict(zip(wanted, wanted, strict=True)), _numbered(backbone))
        for prefix in _prefixes(tensors, names)
    ]
    if not found:
        seen = [key for _, tensors in levels(tree) for key in tensors]
        raise UserError(
            f"no tensor of the backbone ({_some(list(wanted))}) is in it; it holds {len(seen)}: {_some(seen)}; is it "
            f"another architecture? --state_dict_key and --remove_prefix say where to look"
        )
    best = sorted(found, key=lambda m: (not m.complete, -len(m.tensors), _rank(m.where)))
    best[0].also = [m.where for m in best[1:] if m.complete and best[0].complete and m.where != best[0].where]
    return best[0]


def _as_told(tree: Mapping[str, Any], backbone: nn.Module, flags: KeyFlags) -> Match:
    """Descend, take the prefix away at the start of a key, put the other before every key; then names must be equal."""
    level: Any = tree
    path = [part for part in (flags.state_dict_key or "").split(".") if part]
    for i, part in enumerate(path):
        if not isinstance(level, Mapping) or part not in level:
            known = [str(k) for k in level] if isinstance(level, Mapping) else []
            raise UserError(
                f"--state_dict_key {flags.state_dict_key}: no {part!r} in {'.'.join(path[:i]) or 'the file'}"
                f"{did_you_mean(part, known)}; it holds {_some(known)}"
            )
        level = level[part]
    tensors = {k: v for k, v in level.items() if isinstance(v, Tensor)} if isinstance(level, Mapping) else {}
    renamed = {flags.append_prefix + k.removeprefix(flags.remove_prefix): v for k, v in tensors.items()}
    wanted = backbone.state_dict()
    names = dict(zip(wanted, wanted, strict=True))
    return _match(renamed, names, wanted, flags.skip_layers, _place(".".join(path), flags.remove_prefix))


def levels(tree: Any, path: str = "", depth: int = 6) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(path, tensors) of every dictionary in the tree that holds tensors."""
    if not isinstance(tree, Mapping) or not depth:
        return
    tensors = {str(k): v for k, v in tree.items() if isinstance(v, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in tree.items():
        yield from levels(value, f"{path}.{key}" if path else str(key), depth - 1)


def _prefixes(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> set[str]:
    """What stands before the names of a few of the backbone's tensors."""
    spread = list(names.values())
    anchors = spread[:: max(1, len(spread) // ANCHORS)]
    return {key[: -len(a)] for a in anchors for key in tensors if key == a or key.endswith(f".{a}")}


def _numbered(backbone: nn.Module) -> dict[str, str]:
    """name -> its name where the parts of the backbone stand in an nn.Sequential, as Lightly's examples build it."""
    number = {part: str(i) for i, (part, _) in enumerate(backbone.named_children())}
    return {k: ".".join([number.get(k.split(".")[0], "?"), *k.split(".")[1:]]) for k in backbone.state_dict()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _match(
    there: Mapping[str, Tensor],
    names: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    skip: tuple[str, ...],
    where: str,
) -> Match:
    """`names`: name in the backbone -> name in the file."""
    match = Match(where, {})
    for name, tensor in wanted.items():
        key = names[name]
        optional = _part_of(skip, name)  # the counters come along where they are there; what the user names stays out
        if optional and not (_part_of(SKIPPED, name) and key in there):
            match.skipped.append(name)
        elif key not in there:
            match.missing.append(name)
        elif there[key].shape != tensor.shape:
            match.mismatched.append(f"{name} {tuple(there[key].shape)} for {tuple(tensor.shape)}")
        else:
            match.tensors[name] = there[key]
    used = set(names.values())
    match.unexpected = [key for key in there if key not in used]
    return match


def _part_of(parts: tuple[str, ...], name: str) -> bool:
    return any(part in name for part in parts)


def _place(path: str, prefix: str) -> str:
    return " ".join(part for part in (path, f"{prefix}*" if prefix else "*") if part)


def _rank(where: str) -> tuple[bool, bool, str]:
    """Preferred first: DINO's teacher, then whatever is no teacher, then the shortest way."""
    first = any(where.split(" ")[0] == name for name in FIRST)
    return (not first, _part_of(LATER, where), f"{len(where):04d}{where}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Weights that hold NaN or infinity make features that mean nothing."""
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise UserError(f"{source}: {len(bad)} tensors hold NaN or infinity ({_some(bad)}); take an earlier checkpoint")
