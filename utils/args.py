"""The command line: shared flags in titled groups, a strict parser, and every derived value in one place."""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from utils.errors import UserError, did_you_mean
from utils.keys import SKIPPED


def number(kind: type, low: float = float("-inf"), high: float = float("inf"), above: bool = False) -> Callable:
    """An argparse type: a number of `kind` from low (or above it) to high."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (low < value if above else low <= value) or not value <= high:
            floor = "" if low == float("-inf") else f" {'above' if above else 'from'} {low:g}"
            ceiling = "" if high == float("inf") else f" to {high:g}"
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} given, {what}{floor}{ceiling} needed")
        return value

    return convert


positive_int = number(int, 1)
count = number(int, 0)
positive_float = number(float, 0, above=True)
nonnegative_float = number(float, 0)
probability = number(float, 0, 1)


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind each flag, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(ArgumentParser):
    """argparse with errors of one line, without abbreviations, and with the nearest known name for a wrong one."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=Help, usage="%(prog)s DATASET BACKBONE [flags]", **kwargs)

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"argument (\S+): invalid choice: '([^']*)'", message):
            action = next(a for a in self._actions if match[1] in {a.dest, *"/".join(a.option_strings).split("/")})
            known = [str(c) for c in action.choices or ()]
            near = did_you_mean(match[2], known)
            message = f"unknown {match[1].lstrip('-')} {match[2]!r}{near}; choose one of {', '.join(known)}"
        raise UserError(message)

    def parse_strictly(
        self, argv: Sequence[str], others: Mapping[str, str], into: Namespace | None = None
    ) -> Namespace:
        """Parse; an unknown flag is an error with the nearest known one. `others`: flags of other methods -> method."""
        args, unknown = self.parse_known_args(argv, into)
        if unknown:
            flag = next((u for u in unknown if u.startswith("-")), unknown[0]).split("=")[0]
            if flag in others:
                raise UserError(f"{flag} is a flag of --method {others[flag]}, not of {args.method}; leave it out")
            known = [o for a in self._actions for o in a.option_strings]
            raise UserError(f"unknown argument {flag}{did_you_mean(flag, known)}; --help lists all")
        return args


def add_data_flags(parser: ArgumentParser, datasets: Sequence[str]) -> None:
    parser.add_argument("dataset", choices=list(datasets), help="what to train on")
    parser.add_argument("backbone", help="a torchvision ResNet or any timm name")
    g = parser.add_argument_group("data")
    g.add_argument("--data_folder", default="datasets", help="where data sets are, or are downloaded to")
    g.add_argument("--train_dir", help="class folders (or a pile of images) for training, relative to --data_folder")
    g.add_argument("--val_dir", help="class folders for validation, relative to --data_folder")
    g.add_argument("--on_bad_image", choices=["stop", "skip"], default="stop",
                   help="files that are no images or cut off: stop before training, or leave them out")  # fmt: skip
    g.add_argument(
        "--pipeline",
        choices=["auto", "dali", "device", "stream", "torchvision"],
        default="auto",
        help="how images become views: decoded once into memory; or at every step, by NVIDIA DALI, threads, processes",
    )
    g.add_argument("--num_workers", type=count, default=4,
                   help="processes of torchvision, threads of the others; 0: none beside the main one")  # fmt: skip
    g.add_argument(
        "--cache", metavar="DIR", help="keep the decoded images of --pipeline device there, for other runs too"
    )
    g.add_argument("--batch_size", type=positive_int, default=256, help="images per device and step")


def add_view_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("views")
    g.add_argument("--large_size", type=number(int, 8), default=224, help="side of a view in pixels")
    g.add_argument("--crop_scale", type=number(float, 0, 1, above=True), nargs=2, default=[0.2, 1.0],
                   metavar=("LOW", "HIGH"), help="image's share in a large view; 0.14-1 with small ones")  # fmt: skip
    g.add_argument("--small_views", type=count, default=0, help="small views beside the large ones (multi-crop)")
    g.add_argument("--small_size", type=number(int, 8), default=96, help="side of a small view in pixels")
    g.add_argument("--small_scale", type=number(float, 0, 1, above=True), nargs=2, default=[0.05, 0.14],
                   metavar=("LOW", "HIGH"), help="image's share in a small view")  # fmt: skip
    g.add_argument("--flip", type=probability, default=0.5, help="probability of a horizontal flip")
    g.add_argument("--jitter", type=probability, default=0.8, help="probability of colour jitter")
    g.add_argument("--jitter_strengths", type=nonnegative_float, nargs=4, default=[0.4, 0.4, 0.2, 0.1],
                   metavar=("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"), help="as in torchvision")  # fmt: skip
    g.add_argument("--gray", type=probability, default=0.2, help="probability of dropping the colours")
    g.add_argument("--blur", type=probability, nargs="+", default=[0.0], metavar="P",
                   help="probability of a blur; two: of each large view; three: of small ones too")  # fmt: skip
    g.add_argument("--solarize", type=probability, nargs="+", default=[0.0], metavar="P",
                   help="probability of solarizing; two: of each large view; three: of small ones too")  # fmt: skip


def _add_update_flags(g: Any) -> None:
    """What pretraining and the classifiers of an evaluation have in common."""
    g.add_argument("--optimizer", choices=["adamw", "lars", "sgd"], default="sgd")
    g.add_argument("--momentum", type=number(float, 0, 1), default=0.9, help="of sgd and lars")
    g.add_argument("--lars_eta", type=positive_float, default=0.001, help="trust coefficient of lars")
    g.add_argument("--lars_clip", action="store_true", help="never let lars raise the rate above the schedule's")
    g.add_argument("--lr_decay_steps", type=positive_int, nargs="+", default=[60, 80], metavar="EPOCH", help="of step")
    g.add_argument("--lr_decay_factor", type=positive_float, default=0.1, help="of step")


def add_optimizer_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("optimizer")
    _add_update_flags(g)
    g.add_argument("--lr", type=positive_float, default=0.3, help="learning rate per 256 images of the global batch")
    g.add_argument("--weight_decay", type=nonnegative_float, default=1e-4, help="on weights, not on biases and norms")
    g.add_argument("--scheduler", choices=["warmup_cosine", "cosine", "step", "none"], default="warmup_cosine")
    g.add_argument("--warmup_epochs", type=nonnegative_float, help="of warmup_cosine; 10, or a tenth of a shorter run")
    g.add_argument("--accumulate", type=positive_int, default=1, help="batches per optimizer step")
    g.add_argument("--clip_grad", type=positive_float, help="largest norm of the gradient")
    g.add_argument("--probe_lr", type=positive_float, help="of the online probe; 0.1, or 0.001 with adamw")


def add_trainer_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("trainer")
    g.add_argument("--epochs", type=positive_int, default=100)
    g.add_argument("--steps", type=positive_int, help="optimizer steps, instead of --epochs")
    g.add_argument("--num_nodes", type=positive_int, default=1)
    g.add_argument("--precision", choices=["32", "bf16-mixed", "16-mixed"],
                   help="bf16-mixed where the hardware has it, else 32")  # fmt: skip
    g.add_argument("--compile", action="store_true", help="compile the backbone")
    g.add_argument("--resume", metavar="RUN", help="go on with a run folder, exactly where it stopped")


def add_machine_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("machine")
    g.add_argument("--gpus", type=count, nargs="+", metavar="ID", help="CUDA devices; by default what the machine has")
    g.add_argument("--stem", choices=["auto", "small", "imagenet"], default="auto",
                   help="first layers of a ResNet; auto: 3x3 without max-pool for views up to 64 pixels")  # fmt: skip
    g.add_argument("--seed", type=count, default=0, help="the same seed gives the same run")


def add_run_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("run folder")
    g.add_argument("--output", default="trained_models", help="folder of run folders")
    g.add_argument("--run_id", help="name of the run folder; by default made from name, data, backbone and time")


def add_logging_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("logging")
    g.add_argument("--log_every", type=positive_int, default=10, help="batches between two rows of metrics.csv")
    g.add_argument("--knn_every", type=count, default=5, help="epochs between two kNN checks; 0: none")
    g.add_argument("--knn_k", type=positive_int, nargs="+", default=[20, 200], metavar="K")
    add_dashboard_flags(g)


def add_dashboard_flags(g: Any) -> None:
    g.add_argument("--name", help="name of the run; by default the method, or linear")
    g.add_argument("--wandb", action="store_true", help="log to Weights & Biases too")
    g.add_argument("--project", default="lookalike", help="W&B project; only --wandb reads it")
    g.add_argument("--entity", help="W&B entity; only --wandb reads it")
    g.add_argument("--offline", action="store_true", help="W&B without a network; only --wandb reads it")


def add_weight_flags(parser: ArgumentParser, judged: bool) -> None:
    g = parser.add_argument_group("weights")
    what = "run folder, checkpoint or .safetensors file, ours or anyone's"
    g.add_argument("--pretrained_feature_extractor", required=judged, metavar="WEIGHTS", nargs="+" if judged else None,
                   help=f"{what}; several are judged side by side" if judged else f"{what}, to start from")  # fmt: skip
    g.add_argument(
        "--state_dict_key", metavar="KEY", help="where its tensors are, as a.b; by default they are looked for"
    )
    g.add_argument("--remove_prefix", default="", metavar="TEXT", help="taken away at the start of their names")
    g.add_argument("--append_prefix", default="", metavar="TEXT", help="then put before their names")
    g.add_argument("--skip_layers", nargs="+", default=list(SKIPPED), metavar="TEXT",
                   help="parts of names of tensors that need not be there")  # fmt: skip
    g.add_argument("--dry_run", action="store_true", help="report what of the backbone the file holds, and end")


def add_classifier_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("classifier of linear and finetune")
    g.add_argument("--epochs", type=positive_int, default=100)
    _add_update_flags(g)
    g.add_argument("--lr", type=positive_float, nargs="+", default=[0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
                   help="per 256 images; of several, the best on a held-out tenth of the training images")  # fmt: skip
    g.add_argument("--weight_decay", type=nonnegative_float, default=0.0)
    g.add_argument("--scheduler", choices=["cosine", "step", "none"], default="cosine")


def add_evaluation_flags(parser: ArgumentParser, evaluations: Sequence[str]) -> None:
    g = parser.add_argument_group("evaluation")
    g.add_argument(
        "--evaluation",
        nargs="+",
        choices=["all", *evaluations],
        help="what to measure; linear and knn unless --export is all that is asked for",
    )
    g.add_argument("--large_size", type=number(int, 8), help="side of an image in pixels; that of the pretraining")
    g.add_argument("--layer", metavar="BLOCK", help="judge the features after this block; by default after the last")
    g.add_argument("--features_dir", metavar="DIR", help="of features; by default in the run folder, not resumable")
    g.add_argument("--label_fraction", type=number(float, 0, 1, above=True), default=1.0, metavar="SHARE",
                   help="of the labels of each class in linear and finetune, as 0.01 or 0.1")  # fmt: skip
    g.add_argument("--export", nargs=2, metavar=("torchvision|timm|onnx", "FILE"),
                   help="write the backbone for others, with a model card beside it")  # fmt: skip
    g.add_argument("--baselines", action="store_true", help="judge raw pixels and the untrained backbone too")
    g.add_argument("--knn_k", type=positive_int, nargs="+", metavar="K", help="neighbours; by default 20 and 200")
    g.add_argument("--shots", type=positive_int, nargs="+", metavar="N",
                   help="labels per class in fewshot; by default 1 2 4 8 16")  # fmt: skip
    g.add_argument("--draws", type=positive_int, default=5, help="draws of them")
    g.add_argument(
        "--embedding", choices=["pca", "tsne", "umap"], default="tsne", help="of pictures: into the plane by"
    )


def add_cluster_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("cluster")
    g.add_argument(
        "--num_clusters", type=positive_int, metavar="K", help="clusters; N/400 to N/20 of N images are usual"
    )
    g.add_argument("--clusters", metavar="FILE", help="where the ids go, a new .npz")
    g.add_argument("--cluster_iterations", type=positive_int, default=50, help="of k-means, at most")
    g.add_argument("--cluster_seed", type=count, default=0, help="the same seed gives the same clusters")
    g.add_argument("--cluster_backend", choices=["faiss", "torch"], default="torch", help="who computes k-means")
    g.add_argument("--cluster_sample", type=positive_int, metavar="ROWS",
                   help="images that k-means sees; by default all, or as many as fit into memory")  # fmt: skip
    g.add_argument("--pca", type=positive_int, metavar="D", help="cluster on D axes of largest variance")


def pretraining_parser(datasets: Sequence[str]) -> Parser:
    """All shared flags of main_contrastive.py."""
    parser = Parser(description="Self-supervised pretraining of an image backbone.")
    add_data_flags(parser, datasets)
    add_view_flags(parser)
    add_optimizer_flags(parser)
    add_trainer_flags(parser)
    add_machine_flags(parser)
    add_run_flags(parser)
    add_weight_flags(parser, judged=False)
    add_logging_flags(parser)
    return parser


MULTI_CROP = {"crop_scale": [0.14, 1.0]}  # SwAV, sec. 3.3: large views begin where small ones end
UPDATES = (  # flags that do nothing without another one, and what that is
    (("lars_eta", "lars_clip"), "--optimizer lars", lambda a: a.optimizer == "lars"),
    (("momentum",), "--optimizer sgd or lars", lambda a: a.optimizer != "adamw"),
    (("lr_decay_steps", "lr_decay_factor"), "--scheduler step", lambda a: a.scheduler == "step"),
)
PRETRAINING = (
    *UPDATES,
    (("small_size", "small_scale"), "--small_views", lambda a: a.small_views),
    (("warmup_epochs",), "--scheduler warmup_cosine", lambda a: a.scheduler == "warmup_cosine"),
    (
        ("state_dict_key", "remove_prefix", "append_prefix", "skip_layers", "dry_run"),
        "--pretrained_feature_extractor",
        lambda a: a.pretrained_feature_extractor,
    ),
    (("pred_hidden_mlp", "pred_layers"), "a predictor", lambda a: getattr(a, "predictor", True)),
)


def _of(*evaluations: str) -> tuple[str, Callable[[Namespace], bool]]:
    return f"--evaluation {' or '.join(evaluations)}", lambda a: bool({*a.evaluation} & {*evaluations})


JUDGING = (
    (
        ("epochs", "optimizer", "lr", "weight_decay", "scheduler", "label_fraction", "momentum", "lars_eta",
         "lars_clip", "lr_decay_steps", "lr_decay_factor"),
        *_of("linear", "finetune"),
    ),
    *UPDATES,
    (("knn_k",), *_of("knn", "transfer")),
    (("shots", "draws"), *_of("fewshot")),
    (("embedding",), *_of("pictures")),
    (("features_dir",), *_of("features", "cluster")),
    (
        ("num_clusters", "clusters", "cluster_iterations", "cluster_seed", "cluster_backend", "cluster_sample",
         "pca"),
        *_of("cluster"),
    ),
    (("baselines", "layer"), "an evaluation", lambda a: a.evaluation),
)  # fmt: skip


def parse_judging(argv: Sequence[str], datasets: Sequence[str], evaluations: Sequence[str]) -> Namespace:
    """The arguments of main_linear.py; `evaluation` holds the names that are meant."""
    parser = Parser(description="Judge a pretrained backbone, or hand it on.")
    add_data_flags(parser, datasets)
    add_weight_flags(parser, judged=True)
    add_evaluation_flags(parser, evaluations)
    add_cluster_flags(parser)
    add_classifier_flags(parser)
    add_machine_flags(parser)
    add_run_flags(parser)
    add_dashboard_flags(parser.add_argument_group("logging"))
    args = parser.parse_strictly(argv, {})
    usual = [] if args.export else ["linear", "knn"]
    # transfer is probe and kNN under another name, features are files as large as the data set, cluster asks for a K
    every = [name for name in evaluations if name not in ("transfer", "features", "cluster")]
    wanted = every if "all" in (args.evaluation or ()) else args.evaluation or usual
    args = Namespace(**vars(args) | {"evaluation": wanted})
    several = len(args.pretrained_feature_extractor) > 1
    if args.export and several:
        raise UserError("--export writes one backbone, several were named; name the one that is meant")
    if args.export and args.layer:
        raise UserError("--export writes the whole backbone, --layer judges a part of it; leave one of them out")
    if "cluster" in wanted and (several or args.baselines):
        raise UserError("--evaluation cluster takes one backbone; name one, without --baselines")
    if "cluster" in wanted and not (args.num_clusters and args.clusters):
        raise UserError("--evaluation cluster needs --num_clusters K and --clusters FILE.npz")
    _check_used(args, parser, JUDGING)
    return args


def parse(argv: Sequence[str], methods: Mapping[str, Any], datasets: Mapping[str, Any]) -> Namespace:
    """The typed arguments: shared flags and those of the chosen method.

    Defaults, from the strongest: what the method asks for, what the data set, what small views ask for, what is usual.
    """
    first = Parser(add_help=False)
    first.add_argument("--method", default="simclr")
    name = first.parse_known_args(argv)[0].method
    if name not in methods:
        raise UserError(f"unknown method {name!r}{did_you_mean(name, methods)}; choose one of {', '.join(methods)}")
    others = _flags_of_others(name, methods)
    guess = next((word for word in argv if word in datasets), None)  # so that --help shows this data set's defaults
    args = _parser(name, methods, datasets, datasets[guess].views if guess else {}).parse_strictly(argv, others)
    views = (MULTI_CROP if args.small_views else {}) | datasets[args.dataset].views
    parser = _parser(name, methods, datasets, views)
    args = parser.parse_strictly(argv, others)
    _check(args, parser, methods[name].large_views)
    return args


def _parser(name: str, methods: Mapping[str, Any], datasets: Mapping[str, Any], views: dict[str, Any]) -> Parser:
    parser = pretraining_parser(list(datasets))
    parser.set_defaults(**views)
    parser.add_argument("--method", choices=list(methods), default="simclr", help="who learns")
    what = (methods[name].__doc__ or "").partition("\n")[0]
    methods[name].add_args(parser.add_argument_group(f"method {name}", what))
    return parser


def _check(args: Namespace, parser: Parser, large: int) -> None:
    """Refuse what contradicts itself, and what would be accepted and ignored."""
    for low, high, flag in ((*args.crop_scale, "crop_scale"), (*args.small_scale, "small_scale")):
        if low > high:
            raise UserError(f"--{flag} {low} {high}: give the smaller share first")
    if max(len(args.blur), len(args.solarize)) > max(1, large + (args.small_views > 0)):
        raise UserError(
            f"--blur and --solarize take one probability, or one for each of the {large} large views of {args.method}, "
            f"and with --small_views one more for the small ones"
        )
    if args.small_views and args.small_size > args.large_size:
        raise UserError(f"--small_size {args.small_size} is larger than --large_size {args.large_size}; lower it")
    if args.jitter_strengths[3] > 0.5:
        raise UserError(f"--jitter_strengths: hue {args.jitter_strengths[3]} given, at most 0.5 (a half turn) possible")
    _check_used(args, parser, PRETRAINING)


def _check_used(args: Namespace, parser: Parser, rules: Sequence[tuple]) -> None:
    for names, what, there in rules:
        for flag in names:
            if not there(args) and getattr(args, flag, None) != parser.get_default(flag):
                raise UserError(f"--{flag} does nothing without {what}; add that, or leave --{flag} out")


def _flags_of_others(name: str, methods: Mapping[str, Any]) -> dict[str, str]:
    flags: dict[str, str] = {}
    for other in methods:
        if other != name:
            parser = ArgumentParser(add_help=False)
            methods[other].add_args(parser)
            flags |= {option: other for action in parser._actions for option in action.option_strings}
    return flags
