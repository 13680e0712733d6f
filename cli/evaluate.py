"""The command line of main_linear.py."""


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


def parse_evaluation(argv: Sequence[str], datasets: Sequence[str], evaluations: Sequence[str]) -> Namespace:
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
