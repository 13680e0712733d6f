"""A strict argument parser: errors of one line, no abbreviations, hints for misspelt names."""

import argparse
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from utils.arg_types import Rule
from utils.errors import UserError, did_you_mean
from utils.names import escaped, shown

# Flags of other tools and the ones that do the same here.
FOREIGN_FLAGS = {
    "--accelerator_devices": "--gpus", "--arch": "BACKBONE", "--batchsize": "--batch_size", "--bs": "--batch_size",
    "--data": "--data_folder", "--data_dir": "--data_folder", "--data_path": "--data_folder",
    "--devices": "--gpus", "--gpu": "--gpus", "--learning_rate": "--lr", "--max_epochs": "--epochs",
    "--model": "BACKBONE", "--output_dir": "--output", "--wd": "--weight_decay",
    "--workers": "--num_workers",
}  # fmt: skip


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to the help of each flag that does not explain its own; lists and switches in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is argparse.SUPPRESS or action.required:
            return action.help
        if action.default is None:
            return action.help if "default:" in str(action.help) else f"{action.help} (default: none)"
        if isinstance(action.default, bool):
            return f"{action.help} (default: {'on' if action.default == action.const else 'off'})"
        if isinstance(action.default, list | tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class Parser(ArgumentParser):
    """argparse with errors of one line, without abbreviations, and with a near known name for a misspelt one."""

    def __init__(self, **kwargs: Any):
        usage = "python3 %(prog)s DATASET BACKBONE [flags]"
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, usage=usage, **kwargs)

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"argument (\S+): invalid choice: '([^']*)'", message):
            names = {name: a for a in self._actions for name in (a.dest, str(a.metavar), "/".join(a.option_strings))}
            action = names[match[1]]
            choices = [str(c) for c in action.choices or ()]
            near = did_you_mean(match[2], choices)
            message = f"unknown {action.dest} {match[2]!r}{near}; choose one of {', '.join(choices)}"
        if match := re.search(r"argument (\S+): expected (\d+) arguments", message):
            action = next(a for a in self._actions if "/".join(a.option_strings) == match[1])
            if isinstance(action.metavar, tuple):
                message = f"{match[1]} needs {match[2]} values after it: {' '.join(action.metavar)}; see --help"
        raise UserError(escaped(message))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words, off = self._as_typed(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(self._positionals_first(words), namespace)
        for name, value in off.items():
            setattr(found, name, value)
        return found, unknown

    def _as_typed(self, argv: Sequence[str]) -> tuple[list[str], dict[str, bool]]:
        """(argv as a user types it, switches that are off): sweeps write --wandb=true and --crop_scale=[0.2, 1.0]."""
        positionals: list[str] = []
        words: list[str] = []
        off: dict[str, bool] = {}
        after_list = False  # a flag of several values, as one word: what follows it is not one of them
        for word in argv:
            name, equals, text = word.partition("=")
            action = self._option_string_actions.get(name)
            if after_list and _is_value(word):
                positionals.append(word)
                continue
            after_list = False
            if action is None or not (isinstance(action.const, bool) or action.nargs):
                words.append(word)
            elif isinstance(action.const, bool):
                off.pop(action.dest, None)
                if not equals or _truth(name, text):
                    words.append(name)
                else:
                    off[action.dest] = not action.const
            elif after_list := text.startswith("[") and text.endswith("]"):
                words += [name, *(part.strip(" '\"") for part in text[1:-1].split(",") if part.strip())]
            else:
                words.append(word)
        return [*positionals, *words], off

    def _positionals_first(self, argv: Sequence[str]) -> list[str]:
        """argv with its positional arguments in front, where they follow a flag of any number of typed values.

        The flag would swallow them: in `--jitter 0.8 digits resnet18` the last two words are no probabilities.
        """
        lead = len(list(takewhile(_is_value, argv)))
        missing = sum(not action.option_strings for action in self._actions) - lead
        lists = {name for a in self._actions if a.nargs == "+" and a.type for name in a.option_strings}
        for i in [i for i, word in enumerate(argv) if word in lists and missing > 0]:
            values = list(takewhile(_is_value, argv[i + 1 :]))
            start = i + 1 + len(list(takewhile(_is_number, values)))
            stop = min(i + 1 + len(values), start + missing)
            if i + 1 < start < stop:
                return self._positionals_first([*argv[:lead], *argv[start:stop], *argv[lead:start], *argv[stop:]])
        return list(argv)

    def parse_strictly(self, argv: Sequence[str], flags_of_others: Mapping[str, str]) -> Namespace:
        """Parse argv; an unknown flag is an error with a near known one. flags_of_others: flag -> its --method."""
        args: Namespace
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flag = next((u for u in unknown if u.startswith("-")), unknown[0]).split("=")[0]
            self.refuse(flag, flags_of_others, getattr(args, "method", ""))
        return args

    def flag_defaults(self) -> dict[str, Any]:
        """Name -> default of each flag, as it is where the flag is not typed."""
        flags = [a for a in self._actions if a.option_strings and a.dest != "help"]
        defaults = {action.dest: self.get_default(action.dest) for action in flags}
        texts = {a.dest: self._get_value(a, defaults[a.dest]) for a in flags if isinstance(defaults[a.dest], str)}
        return defaults | texts

    def refuse(self, flag: str, flags_of_others: Mapping[str, str], method: str) -> NoReturn:
        """Refuse a flag that the parser does not have: it is that of another method, or a near one is named."""
        if flag in flags_of_others:
            raise UserError(f"{flag} is a flag of --method {flags_of_others[flag]}, not of {method}; remove it")
        known = [option for action in self._actions for option in action.option_strings]
        raise UserError(f"unknown argument {shown(flag)}{_flag_hint(flag, known)}; --help lists all")

    def typed_flags(self, argv: Sequence[str]) -> set[str]:
        """Names of the arguments that argv gives a value, also where it is the default. Forgets the defaults."""
        return set(self.typed_values(argv)[0])

    def typed_values(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """(the values that argv gives, as text, texts or a switch; words that are no flags here). Forgets defaults."""
        self._defaults.clear()  # set_defaults() would make a method's defaults look typed
        for action in self._actions:
            action.default = argparse.SUPPRESS
            action.required = False
            action.choices = None
            action.type = action.type and str
        found, unknown = self.parse_known_args(argv)
        return vars(found), unknown

    def words_of(self, values: Mapping[str, Any]) -> list[str]:
        """The arguments that typed_values reads as these values."""
        positionals, words = [], []
        for action in self._actions:
            if action.dest not in values or action.dest == "help":
                continue
            value, flag = values[action.dest], (action.option_strings or [""])[-1]
            if not flag:
                positionals.append(value)
            elif isinstance(value, bool):
                if value == action.const or not any(value == a.const for a in self._actions if a.dest == action.dest):
                    words.append(flag if value == action.const else f"{flag}=false")
            elif isinstance(value, list):
                words += [flag, *value]
            else:
                words.append(f"{flag}={value}")
        return [*positionals, *words]


def _truth(flag: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UserError(f"{flag}: got {text!r}, needs true or false, or the flag alone for true")
    return text.lower() == "true"


def changed_flags(args: Namespace, defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Flag -> (value, default) of the flags whose values are not the defaults."""
    values = vars(args)
    return {f"--{n}": (values[n], default) for n, default in defaults.items() if n in values and values[n] != default}


def _is_value(word: str) -> bool:
    return not word.startswith("-")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _flag_hint(flag: str, known: Iterable[str]) -> str:
    known = list(known)
    if (same := FOREIGN_FLAGS.get(flag.replace("-", "_").replace("__", "--", 1))) and (same in known or same.isupper()):
        return f" (did you mean {same}?)"
    return did_you_mean(flag, known)


def check_used(
    args: Namespace, typed: set[str], rules: Sequence[Rule], defaults: Mapping[str, Any] | None = None
) -> None:
    """Refuse typed flags that would be ignored. rules: (flags, what they need, whether that is there).

    defaults: of the flags. A switch that is off and is off by default asks for nothing, and is not refused.
    """
    off = {name for name, default in (defaults or {}).items() if default is False and getattr(args, name) is False}
    for names, requirement, condition in rules:
        for flag in names:
            if flag in typed - off and not condition(args):
                raise UserError(f"--{flag} has no effect without {requirement}; add that, or remove --{flag}")
