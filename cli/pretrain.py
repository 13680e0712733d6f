"""The command line of pretraining: shared flags, those of the chosen method, and what contradicts itself."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
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
    drop_probability,
    view_size,
    with_typed_paths,
)
from cli.parser import Parser, Rule, changed_flags, check_used
from utils.arg_types import area_share, count, interval, nonnegative_float, positive_float, positive_int, probability
from utils.errors import UserError, did_you_mean
from utils.heads import HEAD_RULES
from utils.optim import FlagGroup, add_optimizer_flags

DEFAULT_METHOD = "simclr"
MULTI_CROP_VIEWS = {"crop_scale": [0.14, 1.0]}  # SwAV, sec. 3.3: large crops begin where small ones end
STRENGTHS = "BRIGHTNESS CONTRAST SATURATION HUE"
PER_VIEW = {  # flag that a large view may have its own values of -> (values of one view, whether small views may too)
    "crop_scale": ("MIN MAX", False), "jitter": ("P", True), "jitter_strengths": (STRENGTHS, True), "gray": ("P", True),
    "blur": ("P", True), "solarize": ("P", True),
}  # fmt: skip
RULES: tuple[Rule, ...] = (
    *OPTIMIZER_RULES,
    *DASHBOARD_RULES,
    *HARDWARE_RULES,
    (("small_size", "small_scale"), "--small_views", lambda a: bool(a.small_views)),
    (("warmup_epochs",), "--scheduler warmup_cosine", lambda a: a.scheduler == "warmup_cosine"),
    (("decay_norms",), "a --weight_decay above 0", lambda a: bool(a.weight_decay or a.final_weight_decay)),
    (("final_lr",), "--scheduler warmup_cosine or cosine", lambda a: a.scheduler.endswith("cosine")),
    (
        ("state_dict_key", "remove_prefix", "append_prefix", "skip_layers", "dry_run"),
        "--pretrained_feature_extractor",
        lambda a: bool(a.pretrained_feature_extractor),
    ),
    *HEAD_RULES,
)


class MethodFlags(Protocol):
    """The part of a method that the command line needs."""

    large_views: int
    flag_rules: tuple[Rule, ...]

    @staticmethod
    def add_args(parser: FlagGroup) -> None: ...

    @staticmethod
    def length_defaults(epochs: int) -> dict[str, Any]: ...


class DatasetFlags(Protocol):
    """The part of a data set's entry that the command line needs: its defaults of the view flags."""

    @property
    def views(self) -> dict[str, Any]: ...


Methods = Mapping[str, type[MethodFlags]]
Datasets = Mapping[str, DatasetFlags]


def pretraining_words(argv: Sequence[str], methods: Methods, datasets: Datasets) -> list[str]:
    """The arguments of a pretraining command, with those of the file that --config names."""

    def parser_of(words: Sequence[str]) -> tuple[Parser, dict[str, str]]:
        name = _method_name(words, methods)
        return _parser(name, methods, datasets, {}), _flags_of_others(name, methods)

    return expand_config(argv, parser_of)


def parse_pretraining(argv: Sequence[str], methods: Methods, datasets: Datasets) -> Namespace:
    """The flags of a pretraining command, those of the method included, checked.

    Defaults, from the strongest: the data set's, those of multi-crop, the method's for this number of epochs, the
    method's, the shared ones.
    """
    name = _method_name(argv, methods)
    flags_of_others = _flags_of_others(name, methods)
    dataset = next((word for word in argv if word in datasets), None)  # so that --help shows its defaults
    parser = _parser(name, methods, datasets, datasets[dataset].views if dataset else {})
    first = parser.parse_strictly(argv, flags_of_others)
    defaults = _defaults(first, methods, datasets)
    parser = _parser(name, methods, datasets, defaults)
    args = with_typed_paths(parser.parse_strictly(argv, flags_of_others))
    typed = _parser(name, methods, datasets, {}).typed_flags(argv)
    args = _without_values_of_small_views(args, methods[name].large_views, typed)
    _check_views(args, methods[name].large_views)
    check_used(args, typed, [*RULES, *methods[name].flag_rules], parser.flag_defaults())
    return args


def _defaults(args: Namespace, methods: Methods, datasets: Datasets) -> dict[str, Any]:
    """The defaults that depend on other flags."""
    multi_crop = MULTI_CROP_VIEWS if args.small_views else {}
    return methods[args.method].length_defaults(args.epochs) | multi_crop | datasets[args.dataset].views


def changed_pretraining_flags(argv: Sequence[str], methods: Methods, datasets: Datasets) -> dict[str, tuple[Any, Any]]:
    """Flag -> (value, default) of what a command sets; the defaults are those of its method, data set and length."""
    args = parse_pretraining(argv, methods, datasets)
    defaults = _parser(args.method, methods, datasets, _defaults(args, methods, datasets)).flag_defaults()
    usual = Namespace(**defaults | {"small_views": args.small_views})
    usual = _without_values_of_small_views(usual, methods[args.method].large_views, set())
    return changed_flags(args, vars(usual) | {"small_views": defaults["small_views"]})


def parse_resumed(
    before: Sequence[str], argv: Sequence[str], methods: Methods, datasets: Datasets
) -> tuple[Namespace, list[str]]:
    """(flags that a run was started with, arguments to resume it with, for parse_pretraining).

    A run that is extended keeps the defaults of its first number of epochs: they are added to its arguments, each time
    that the longer command is given.
    """
    started = parse_pretraining(before, methods, datasets)
    if list(argv) == list(before) or _method_name(argv, methods) != started.method:
        return started, list(argv)
    method, present = methods[started.method], parse_pretraining(argv, methods, datasets)
    typed = _parser(present.method, methods, datasets, {}).typed_flags(argv)
    pinned: list[str] = []
    values: dict[str, Any] = {}
    for name in (method.length_defaults(started.epochs) | method.length_defaults(present.epochs)).keys() - typed:
        value = getattr(started, name)
        if value is None and name == "warmup_epochs" and not started.steps:
            value = min(10.0, started.epochs / 10)  # a plan's choice, as a number that a word can give
        if value == getattr(present, name):
            continue
        rules = [rule for rule in (*RULES, *method.flag_rules) if name in rule[0]]
        if value is None or not all(condition(present) for _, _, condition in rules):
            values[name] = getattr(present, name)  # without effect: a resumed run has the warm-up of its plan
        else:
            values[name] = value
            pinned.append(f"--{name}={value}")
    return Namespace(**vars(started) | values), [*sorted(pinned), *argv]


def method_args(args: Namespace, methods: Methods) -> Namespace:
    """The flags that only the chosen method reads."""
    parser = ArgumentParser(add_help=False)
    methods[args.method].add_args(parser)
    names = {action.dest for action in parser._actions}
    return Namespace(**{name: value for name, value in vars(args).items() if name in names})


def _method_name(argv: Sequence[str], methods: Methods) -> str:
    first = Parser(add_help=False)
    first.add_argument("--method", default=DEFAULT_METHOD)
    name = str(first.parse_known_args(argv)[0].method)
    if name not in methods:
        raise UserError(f"unknown method {name!r}{did_you_mean(name, methods)}; choose one of {', '.join(methods)}")
    return name


def _parser(name: str, methods: Methods, datasets: Datasets, defaults: dict[str, Any]) -> Parser:
    parser = Parser(description="Self-supervised pretraining of an image backbone.")
    add_positionals(parser, list(datasets))
    common = parser.add_argument_group("common")
    common.add_argument("--method", choices=list(methods), default=DEFAULT_METHOD, help="self-supervised method")
    _add_length_flags(common)
    add_common_flags(common)
    common.add_argument("--preview", action="store_true",
                        help="write preview.html into --output and exit: the views, the data, the plan, what the run "
                        "will take, and advice")  # fmt: skip
    common.add_argument("--resume", metavar="RUN",
                        help="resume the run in this folder; auto: start --run_id or resume it")  # fmt: skip
    common.add_argument("--extend_schedule", choices=["stretch", "constant"],
                        help="with --resume and more --epochs or --steps: from now on the learning rate and the decay "
                        "of teachers follow the schedule of the new length (stretch), or the old schedule to its end "
                        "and then stay at its last value (constant); the warm-up stays as it was")  # fmt: skip
    description = (methods[name].__doc__ or "").partition("\n")[0]
    method_group = parser.add_argument_group(f"method {name}", description)
    _add_optimization_flags(parser.add_argument_group("optimizer and schedule"))
    _add_view_flags(parser.add_argument_group("views"))
    add_loading_flags(parser)
    _add_hardware_flags(parser.add_argument_group("hardware"))
    _add_backbone_flags(parser.add_argument_group("backbone"))
    _add_logging_flags(parser.add_argument_group("logging and evaluation during training"))
    methods[name].add_args(method_group)  # last: it sets the method's defaults of the flags above
    parser.set_defaults(**defaults)
    return parser


def _add_length_flags(g: FlagGroup) -> None:
    g.add_argument("--epochs", type=positive_int, default=100, help="passes over the training images")
    g.add_argument(
        "--steps", type=positive_int, help="optimizer steps; they take the place of --epochs where both are given"
    )
    g.add_argument("--lr", type=positive_float, default=0.3, help="learning rate per 256 images of the global batch")


def _add_optimization_flags(g: FlagGroup) -> None:
    add_optimizer_flags(g)
    g.add_argument("--weight_decay", type=nonnegative_float, default=1e-4,
                   help="weight decay of weights; biases and norms have none")  # fmt: skip
    g.add_argument("--decay_norms", action="store_true",
                   help="give biases and norms the weight decay too, as a plain torch.optim has it")  # fmt: skip
    g.add_argument("--final_weight_decay", type=nonnegative_float,
                   help="weight decay at the end of the run, along half a cosine; default: --weight_decay")  # fmt: skip
    g.add_argument("--final_lr", type=nonnegative_float, default=0.0,
                   help="learning rate at the end of the cosine, per 256 images as --lr")  # fmt: skip
    g.add_argument("--layer_decay", type=positive_float, default=1.0, metavar="FACTOR",
                   help="factor on the learning rate from each block of a timm network, such as a ViT, to the one "
                   "before it")  # fmt: skip
    g.add_argument("--scheduler", choices=["warmup_cosine", "cosine", "step", "none"], default="warmup_cosine",
                   help="learning-rate schedule; none keeps the rate constant")  # fmt: skip
    g.add_argument("--warmup_epochs", type=nonnegative_float,
                   help="epochs of linear warm-up; default: 10, or a tenth of a shorter run")  # fmt: skip
    g.add_argument("--accumulate", type=positive_int, default=1, help="batches per optimizer step")
    g.add_argument("--clip_grad", type=nonnegative_float,
                   help="clip the gradient norm to this value; 0 for no limit; default: no limit")  # fmt: skip
    g.add_argument("--probe_lr", type=positive_float,
                   help="learning rate of the online probe; default: 0.1, or 0.001 with adamw")  # fmt: skip


def _add_view_flags(g: FlagGroup) -> None:
    g.add_argument("--large_size", type=view_size, default=224, help="side of a large view in pixels")
    g.add_argument("--crop_scale", type=area_share, nargs="+", default=[0.08, 1.0], metavar=("MIN MAX", "MIN MAX"),
                   help="min and max fraction of the image area (RandomResizedCrop), for all large views, or for each "
                   "of them")  # fmt: skip
    g.add_argument("--small_views", type=count, default=0, help="small views beside the large ones (multi-crop)")
    g.add_argument("--small_size", type=view_size, default=96, help="side of a small view in pixels")
    g.add_argument("--small_scale", type=area_share, nargs=2, default=[0.05, 0.14], metavar=("MIN", "MAX"),
                   help="min and max fraction of the image area in small views")  # fmt: skip
    g.add_argument("--flip", type=probability, default=0.5, help="probability of a horizontal flip")
    per_view = "one for all views, or one for each large view and perhaps one for the small views"
    g.add_argument("--jitter", type=probability, nargs="+", default=[0.8], metavar="P",
                   help=f"probability of ColorJitter; {per_view}")  # fmt: skip
    g.add_argument("--jitter_strengths", type=nonnegative_float, nargs="+", default=[0.4, 0.4, 0.2, 0.1], metavar="S",
                   help="strengths of ColorJitter: brightness, contrast, saturation and hue; four for all views, or "
                   "four for each large view and perhaps four for the small views")  # fmt: skip
    g.add_argument("--gray", type=probability, nargs="+", default=[0.2], metavar="P",
                   help=f"probability of RandomGrayscale; {per_view}")  # fmt: skip
    g.add_argument("--blur", type=probability, nargs="+", default=[0.0], metavar="P",
                   help=f"probability of Gaussian blur; {per_view}")  # fmt: skip
    g.add_argument("--solarize", type=probability, nargs="+", default=[0.0], metavar="P",
                   help=f"probability of RandomSolarize; {per_view}")  # fmt: skip


def _add_hardware_flags(g: FlagGroup) -> None:
    add_hardware_flags(g)
    g.add_argument("--num_nodes", type=positive_int, default=1, help="number of machines")
    g.add_argument("--precision", choices=["32", "bf16-mixed", "16-mixed"],
                   help="numeric precision; default: bf16-mixed where the hardware computes bf16, else 32")  # fmt: skip
    g.add_argument("--compile", action="store_true", help="compile the networks and the loss of training")
    g.add_argument("--deterministic", action="store_true",
                   help="deterministic algorithms only, so that a run on one GPU can be repeated bit for bit; "
                   "slower")  # fmt: skip


def _add_backbone_flags(g: FlagGroup) -> None:
    add_backbone_flags(g)
    g.add_argument("--zero_init_residual", action="store_true", dest="zero_init_residual",
                   help="initialize the last norm of each residual block of a ResNet with zero")  # fmt: skip
    g.add_argument("--no_zero_init_residual", action="store_false", dest="zero_init_residual",
                   help="keep the library's own initialization of these norms")  # fmt: skip
    g.add_argument("--drop_path", type=drop_probability, default=0.0,
                   help="probability that an image skips the last residual block, linear from 0 at the first one "
                   "(stochastic depth), of timm networks that have it; off in evaluation")  # fmt: skip
    g.add_argument("--pretrained_feature_extractor", metavar="WEIGHTS",
                   help="start from these weights: a run folder, a checkpoint or a .safetensors file")  # fmt: skip
    add_checkpoint_key_flags(g)


def _add_logging_flags(g: FlagGroup) -> None:
    g.add_argument("--log_every", type=positive_int, default=10,
                   help="optimizer steps between two rows of metrics.csv")  # fmt: skip
    g.add_argument("--knn_every", type=count, default=5, help="epochs between two kNN evaluations; 0 for none")
    g.add_argument("--knn_k", type=positive_int, nargs="+", default=[20, 200], metavar="K",
                   help="numbers of nearest neighbours of the kNN evaluation")  # fmt: skip
    g.add_argument("--checkpoint_every", type=interval, default="1epoch", metavar="INTERVAL",
                   help="time, steps or epochs between two checkpoints, such as 15m (or s, h), 500steps or 1epoch; the "
                   "end of the run is saved too")  # fmt: skip
    g.add_argument("--keep_every", type=count, default=0, metavar="EPOCHS",
                   help="epochs between two checkpoints that stay in the run folder as epoch-00010.ckpt; 0 for "
                   "none")  # fmt: skip
    g.add_argument("--on_alarm", choices=["warn", "stop"], default="warn",
                   help="what a sign of failed training (collapse, loss at chance) does: print a line, or end the "
                   "run")  # fmt: skip
    add_dashboard_flags(g, "method, data set and seed")


def _without_values_of_small_views(args: Namespace, large: int, typed: set[str]) -> Namespace:
    """The flags without what a method's defaults say of small views, where there are none."""
    flags = [flag for flag in PER_VIEW if flag not in typed and not args.small_views]
    cut = {flag: getattr(args, flag)[: large * len(PER_VIEW[flag][0].split())] for flag in flags}
    return Namespace(**vars(args) | cut)


def _check_views(args: Namespace, large: int) -> None:
    """Refuse view settings that contradict each other."""
    for flag, (needed, has_small) in PER_VIEW.items():
        _check_count(args, flag, needed, large, has_small)
    for flag in ("crop_scale", "small_scale"):
        values = getattr(args, flag)
        for low, high in zip(values[::2], values[1::2], strict=True):
            if low > high:
                raise UserError(f"--{flag} {low} {high}: the minimum is larger than the maximum; swap them")
    if args.small_views and args.small_size > args.large_size:
        raise UserError(f"--small_size {args.small_size} is larger than --large_size {args.large_size}; lower it")
    if (hue := max(args.jitter_strengths[3::4])) > 0.5:
        raise UserError(f"--jitter_strengths: got hue {hue}, needs at most 0.5 (a half turn)")


def _check_count(args: Namespace, flag: str, needed: str, large: int, has_small: bool) -> None:
    """Refuse a flag with more or fewer values than `needed` names for one view, for each large view or for one kind."""
    found, one = len(getattr(args, flag)), len(needed.split())
    counts = [one, one * large, one * (large + 1)][: 2 + (has_small and args.small_views > 0)]
    if found not in counts:
        small = ", and with --small_views one more for the small views" if has_small else ""
        raise UserError(
            f"--{flag}: got {found} numbers, needs {needed} for all views, or one for each of the {large} large views "
            f"of {args.method}{small}"
        )


def _flags_of_others(name: str, methods: Methods) -> dict[str, str]:
    flags: dict[str, str] = {}
    for other in methods:
        if other != name:
            parser = ArgumentParser(add_help=False)
            methods[other].add_args(parser)
            for option in (option for action in parser._actions for option in action.option_strings):
                flags[option] = f"{flags[option]}, {other}" if option in flags else other
    return flags
