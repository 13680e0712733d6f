"""The command line of evaluation and export: shared flags, those of each evaluation, and what contradicts itself."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cli.config import expand_config
from cli.flags import (
    DASHBOARD_RULES,
    HARDWARE_RULES,
    OPTIMIZER_RULES,
    add_backbone_flags,
    add_checkpoint_key_flags,
    add_common_flags,
    add_dashboard_flags,
    add_hardware_flags,
    add_loading_flags,
    add_positionals,
    view_size,
    with_typed_paths,
)
from cli.parser import Parser, Rule, changed_flags, check_used
from utils.arg_types import positive_int
from utils.errors import UserError
from utils.optim import FlagGroup

ALL = "all"
DEFAULT_RUN_NAME = "evaluation"
RULES: tuple[Rule, ...] = (
    *OPTIMIZER_RULES,
    *DASHBOARD_RULES,
    *HARDWARE_RULES,
    (("baselines", "layer", "last_blocks"), "an evaluation", lambda a: bool(a.evaluation)),
)
AddFlags = Callable[[FlagGroup], None]


class EvaluationFlags(Protocol):
    """The part of a registered evaluation that the command line needs."""

    @property
    def summary(self) -> str: ...

    @property
    def flags(self) -> Sequence[AddFlags]: ...

    @property
    def required_flags(self) -> Sequence[str]: ...

    @property
    def in_all(self) -> bool: ...

    @property
    def is_default(self) -> bool: ...

    @property
    def single_network(self) -> bool: ...

    @property
    def implied_by(self) -> str: ...


Evaluations = Mapping[str, EvaluationFlags]


def evaluation_words(argv: Sequence[str], datasets: Sequence[str], evaluations: Evaluations) -> list[str]:
    """The arguments of an evaluation command, with those of the file that --config names."""
    return expand_config(argv, lambda words: (_parser(datasets, evaluations), {}))


def parse_evaluation(argv: Sequence[str], datasets: Sequence[str], evaluations: Evaluations) -> Namespace:
    """The flags of an evaluation command, those of every evaluation included, checked.

    `evaluation` holds the names of the evaluations to compute: the typed ones, all, or the defaults; none where the
    command only exports. `named` holds the typed ones. `export` is None or (format, Path).
    """
    parser = _parser(datasets, evaluations)
    args, usual = with_typed_paths(parser.parse_strictly(argv, {})), parser.flag_defaults()
    export = (args.export[0], Path(args.export[1])) if args.export else None
    chosen = {"evaluation": _names(args, evaluations), "named": [n for n in args.evaluation or () if n != ALL]}
    args = Namespace(**vars(args) | chosen | {"export": export})
    check_used(args, parser.typed_flags(argv), [*_rules(evaluations), *RULES], usual)
    _check_export(args)
    for name in args.evaluation:
        _check_evaluation(args, name, evaluations[name])
    return args


def changed_evaluation_flags(
    argv: Sequence[str], datasets: Sequence[str], evaluations: Evaluations
) -> dict[str, tuple[Any, Any]]:
    """Flag -> (value, default) of what an evaluation sets."""
    defaults = _parser(datasets, evaluations).flag_defaults()
    return changed_flags(parse_evaluation(argv, datasets, evaluations), defaults)


def _names(args: Namespace, evaluations: Evaluations) -> list[str]:
    implied = [name for name, e in evaluations.items() if e.implied_by and getattr(args, e.implied_by)]
    defaults = [name for name, evaluation in evaluations.items() if evaluation.is_default]
    if ALL in (args.evaluation or ()):
        return [*(name for name, evaluation in evaluations.items() if evaluation.in_all), *implied]
    named = args.evaluation or ([] if args.export or implied else defaults)
    return list(dict.fromkeys([*named, *implied]))


def _parser(datasets: Sequence[str], evaluations: Evaluations) -> Parser:
    parser = Parser(description="Evaluate pretrained backbones, or export one.")
    add_positionals(parser, datasets)
    common = parser.add_argument_group("common")
    common.add_argument("--pretrained_feature_extractor", required=True, metavar="WEIGHTS", nargs="+",
                        help="weights to evaluate: run folders, checkpoints or .safetensors files; several become rows "
                        "of one table")  # fmt: skip
    summaries = "; ".join(f"{name}: {evaluation.summary}" for name, evaluation in evaluations.items())
    defaults = " ".join(name for name, evaluation in evaluations.items() if evaluation.is_default)
    left_out = " and ".join(name for name, evaluation in evaluations.items() if not evaluation.in_all)
    common.add_argument("--evaluation", nargs="+", choices=[ALL, *evaluations], metavar="NAME",
                        help=f"what to compute. {summaries}; {ALL}: all but {left_out} (default: {defaults}, or "
                        f"nothing with --export)")  # fmt: skip
    common.add_argument("--baselines", action="store_true", help="evaluate raw pixels and the untrained backbone too")
    add_common_flags(common)
    for add_flags, names in _flag_groups(evaluations).items():
        add_flags(parser.add_argument_group(f"evaluation {' and '.join(names)}"))
    images = parser.add_argument_group("images and features")
    images.add_argument("--large_size", type=view_size,
                        help="side of an image in pixels (default: that of the pretraining)")  # fmt: skip
    images.add_argument("--layer", metavar="BLOCK", help="features are the output of this block (default: the last)")
    images.add_argument("--last_blocks", type=positive_int, metavar="N",
                        help="features of the last N blocks of a vision transformer, side by side: the class token or "
                        "the average of each, after the final norm (default: of the last block)")  # fmt: skip
    add_loading_flags(parser)
    add_hardware_flags(parser.add_argument_group("hardware"))
    weights = parser.add_argument_group("backbone and weights")
    add_backbone_flags(weights)
    add_checkpoint_key_flags(weights)
    parser.add_argument_group("export").add_argument(
        "--export", nargs=2, metavar=("FORMAT", "FILE"),
        help="write the backbone with a model card for another library: torchvision, timm or onnx; hub writes a folder "
        "in the form of the Hugging Face Hub")  # fmt: skip
    add_dashboard_flags(parser.add_argument_group("logging"), DEFAULT_RUN_NAME)
    return parser


def _flag_groups(evaluations: Evaluations) -> dict[AddFlags, list[str]]:
    """Each function that adds flags, once, with the names of the evaluations that read these flags."""
    groups: dict[AddFlags, list[str]] = {}
    for name, evaluation in evaluations.items():
        for add_flags in evaluation.flags:
            groups.setdefault(add_flags, []).append(name)
    return groups


def _rules(evaluations: Evaluations) -> list[Rule]:
    """A rule per group of flags: one of the evaluations that read them must be named."""
    return [
        (_flag_names(add_flags), f"--evaluation {' or '.join(names)}", _any_chosen(names))
        for add_flags, names in _flag_groups(evaluations).items()
    ]


def _any_chosen(names: Sequence[str]) -> Callable[[Namespace], bool]:
    return lambda args: bool({*args.evaluation} & {*names})


def _flag_names(add_flags: AddFlags) -> tuple[str, ...]:
    parser = ArgumentParser(add_help=False)
    add_flags(parser)
    return tuple(action.dest for action in parser._actions)


def _check_export(args: Namespace) -> None:
    if args.export and len(args.pretrained_feature_extractor) > 1:
        raise UserError("--export writes one backbone, several weights are named; name one file")
    for flag in ("layer", "last_blocks"):
        if args.export and getattr(args, flag):
            raise UserError(f"--export writes the whole backbone, --{flag} evaluates a part of it; remove one of them")
    if args.layer and args.last_blocks:
        raise UserError("--layer and --last_blocks both choose the features; remove one of them")


def _check_evaluation(args: Namespace, name: str, evaluation: EvaluationFlags) -> None:
    if evaluation.single_network and (len(args.pretrained_feature_extractor) > 1 or args.baselines):
        raise UserError(f"--evaluation {name} takes one backbone; name one, without --baselines")
    if any(getattr(args, flag) is None for flag in evaluation.required_flags):
        required = " and ".join(f"--{flag}" for flag in evaluation.required_flags)
        raise UserError(f"--evaluation {name} needs {required}; add them")
