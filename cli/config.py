"""--config: the flags of a YAML file or of an earlier run's args.json, under those of the command line."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.parser import Parser
from utils.errors import UserError
from utils.files import entry, read_json, typed_path

OF_ONE_RUN = ("run_id", "resume", "extend_schedule")  # flags of args.json that another run must not have
POSITIONALS = ("dataset", "backbone")
NULL = ("", "~", "null", "Null", "NULL")  # how YAML writes that a flag is not set
# Words of a command -> (parser of its method, flags of other methods: flag -> their --method).
ParserOf = Callable[[Sequence[str]], tuple[Parser, Mapping[str, str]]]


def expand_config(argv: Sequence[str], parser_of: ParserOf) -> list[str]:
    """argv with the flags of the file that --config names, in full; a flag that argv has too keeps its value there.

    What is recorded of a run is therefore complete without the file. A key that is no flag is a UserError.
    """
    first = Parser(add_help=False)
    first.add_argument("--config", action="append", default=[])
    named, argv = first.parse_known_args(argv)
    if not named.config or {"-h", "--help"} & {*argv}:
        return list(argv)
    if len(named.config) > 1:
        raise UserError(f"--config names {len(named.config)} files; name one, and give the rest as flags")
    path = typed_path(named.config[0])
    path = path / "args.json" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"--config {path} does not exist; name a YAML file, or a run's folder or args.json")
    recorded = path.suffix == ".json"
    flags = {} if recorded else _read_yaml(path)
    positionals, words = ({}, entry(path, read_json(path), "argv", list)) if recorded else _words_of_yaml(flags)
    parser, flags_of_others = parser_of([*words, *argv])
    _refuse_lists(path, flags, parser)
    typed, unknown = parser.typed_values(argv)
    values, unknown_keys = parser.typed_values(words)
    if unknown_keys:
        try:
            parser.refuse(unknown_keys[0].split("=")[0], flags_of_others, str((values | typed).get("method", "")))
        except UserError as e:
            raise UserError(f"{path}: {e}") from None
    if "config" in values:
        raise UserError(f"{path}: it names another --config; write its flags into one file")
    left_out = [*OF_ONE_RUN * recorded, *(["steps"] if "epochs" in typed else [])]
    values = {name: value for name, value in (positionals | values).items() if name not in left_out}
    return [*parser.words_of(values | typed), *unknown]


def _words_of_yaml(flags: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """(data set and backbone, the other entries as arguments) of a flat YAML file; a value is text, as in a shell."""
    positionals = {name: str(flags[name]) for name in POSITIONALS if name in flags}
    words = []
    for name, value in flags.items():
        if name not in POSITIONALS:
            words += [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"]
    return positionals, words


def _refuse_lists(path: Path, flags: Mapping[str, Any], parser: Parser) -> None:
    """Refuse a list where one value is needed: its second value would be taken for a word of its own."""
    several = {option for action in parser._actions if action.nargs for option in action.option_strings}
    options = {option for action in parser._actions for option in action.option_strings}
    for name, value in flags.items():
        known = f"--{name}" in options or name in POSITIONALS
        if isinstance(value, list) and known and f"--{name}" not in several:
            flag = name if name in POSITIONALS else f"--{name}"
            raise UserError(f"{path}: {name} is a list, and {flag} takes one value; write it without brackets")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError as e:
        raise UserError(f"--config needs PyYAML ({e}): pip install -r requirements.txt") from e
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UserError(f"--config {path} cannot be read ({' '.join(str(e).split())}); correct the file") from e
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"--config {path}: it holds no `flag: value`; write one per line, as lr: 0.3")
    flags: dict[str, Any] = {}
    for key, node in root.value:
        where, name = f"--config {path}, line {key.start_mark.line + 1}", str(key.value)
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(part, yaml.ScalarNode) for part in (key, *parts)):
            raise UserError(f"{where}: {name} has entries of its own; write each flag by itself, as lr: 0.3")
        if name in flags:
            raise UserError(f"{where}: {name} comes twice; remove one")
        if isinstance(node, yaml.SequenceNode):
            flags[name] = [part.value for part in parts]
        elif node.style or node.value not in NULL:
            flags[name] = node.value
    return flags
