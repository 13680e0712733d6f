"""Flags that pretraining and evaluation share, in titled groups."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from utils.arg_types import Rule, count, folder_name, number, positive_int
from utils.errors import UserError
from utils.files import OUTPUT, typed_path
from utils.optim import FlagGroup

DEFAULT_PROJECT = "lookalike"
LARGEST_SEED = 2**32 - 1  # of numpy
IGNORED_TENSORS = ("num_batches_tracked",)  # counters of batch norm, which not every checkpoint has
OPTIMIZER_RULES: tuple[Rule, ...] = (
    (("lars_eta", "lars_clip"), "--optimizer lars", lambda a: a.optimizer == "lars"),
    (("momentum",), "--optimizer sgd or lars", lambda a: a.optimizer != "adamw"),
    (("adam_betas",), "--optimizer adamw", lambda a: a.optimizer == "adamw"),
    (("lr_decay_steps", "lr_decay_factor"), "--scheduler step", lambda a: a.scheduler == "step"),
)
HARDWARE_RULES: tuple[Rule, ...] = (
    (("gpus",), "--accelerator auto or cuda", lambda a: a.accelerator in ("auto", "cuda")),
)
DASHBOARD_RULES: tuple[Rule, ...] = ((("entity", "offline"), "--wandb", lambda a: a.wandb),)


def add_positionals(parser: ArgumentParser, datasets: Sequence[str]) -> None:
    parser.add_argument("dataset", choices=list(datasets), metavar="DATASET", help=f"one of {', '.join(datasets)}")
    parser.add_argument("backbone", metavar="BACKBONE", help="a torchvision ResNet, also with a factor of its channels "
                        "(resnet50x2, resnet18x0.25), or any timm model name")  # fmt: skip


def with_typed_paths(args: Namespace) -> Namespace:
    """The flags with ~ expanded in --output and --record; a path that cannot be looked up is a UserError."""
    paths = {name: getattr(args, name) for name in ("output", "record")}
    try:
        return Namespace(**vars(args) | {name: str(typed_path(path)) for name, path in paths.items() if path})
    except UserError as e:
        raise UserError(f"--output or --record: {e}") from None


def add_common_flags(group: FlagGroup) -> None:
    """The flags that most commands need."""
    group.add_argument("--config", metavar="FILE", help="flags of a YAML file, or of the args.json of a run; those of "
                       "the command line win")  # fmt: skip
    group.add_argument("--data_folder", default="datasets",
                       help="folder of data sets, to which downloads go; of custom the images themselves: a folder, a "
                       ".csv or .parquet table, .tar shards, an .npy or .npz file, a saved data set, or "
                       "hf://datasets/NAME")  # fmt: skip
    group.add_argument("--train_dir", help="training images, relative to --data_folder: class folders, an unlabelled "
                       "folder, a table, shards, an array, or a split's name (default: its own)")  # fmt: skip
    group.add_argument("--val_dir", help="validation images, in one of these forms (default: the data set's own)")
    group.add_argument("--batch_size", type=positive_int, default=256, help="images per process and forward pass")
    group.add_argument("--num_workers", type=count, default=4,
                       help="worker processes (torchvision) or threads (other pipelines); 0 loads in the main "
                       "process")  # fmt: skip
    group.add_argument("--gpus", type=count, nargs="+", metavar="ID", help="GPU ids (default: all)")
    group.add_argument("--output", default=OUTPUT, help="parent directory of run folders")
    group.add_argument("--record", metavar="DIR",
                       help="directory of a ledger: the run adds a JSON file with its command, versions, machine, data "
                       "and scores")  # fmt: skip
    group.add_argument("--run_id", type=folder_name,
                       help="name of the run folder; default: name, data set, backbone and time")  # fmt: skip
    group.add_argument(
        "--seed", type=number(int, 0, LARGEST_SEED), default=0, help="random seed; the same seed gives the same run"
    )


def add_loading_flags(parser: ArgumentParser) -> None:
    g = parser.add_argument_group("data loading")
    g.add_argument("--pipeline", choices=["auto", "dali", "memory", "stream", "torchvision"], default="auto",
                   help="data pipeline: images decoded once and kept in memory; decoded at every step by threads "
                   "(stream), by NVIDIA DALI, or by torchvision in worker processes")  # fmt: skip
    g.add_argument("--cache", metavar="DIR", help="directory for decoded images of --pipeline memory; shared by runs")
    g.add_argument("--unlabelled", action="store_true",
                   help="no image has a label: sub-folders are no classes, and labels of tables and shards are not "
                   "read")  # fmt: skip
    g.add_argument("--image_column", metavar="NAME",
                   help="column of the images in a table or data set, array in an .npz file, or file ending in tar "
                   "shards (default: found by type and name)")  # fmt: skip
    g.add_argument("--label_column", metavar="NAME",
                   help="column of the labels, found likewise; in tar shards a file ending or a key of the .json files "
                   "(default there: cls)")  # fmt: skip
    g.add_argument("--on_bad_image", choices=["stop", "skip"], default="stop",
                   help="corrupt or truncated images: abort or exclude")  # fmt: skip


def add_hardware_flags(group: FlagGroup) -> None:
    group.add_argument("--accelerator", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                       help="hardware to compute on; auto takes a GPU where there is one")  # fmt: skip


def add_backbone_flags(group: FlagGroup) -> None:
    group.add_argument("--stem", choices=["auto", "small", "imagenet"], default="auto",
                       help="first layers of a ResNet: 3x3 without max-pool (small) or 7x7; auto takes small for views "
                       "up to 64 pixels")  # fmt: skip
    group.add_argument("--patch_size", type=positive_int,
                       help="side of a patch in pixels, of timm's vision transformers (vit_*, deit_*); default: the "
                       "network's own")  # fmt: skip
    group.add_argument("--pool", choices=["token", "avg"],
                       help="features of a vision transformer: its class token, or the average of its other tokens; "
                       "default: the network's own")  # fmt: skip


def add_checkpoint_key_flags(group: FlagGroup) -> None:
    """Flags that say where in a checkpoint the backbone's tensors are."""
    group.add_argument("--state_dict_key", metavar="KEY", help="dotted path of the state_dict (default: auto-detect)")
    group.add_argument("--remove_prefix", default="", metavar="PREFIX",
                       help="prefix to strip from tensor names; those without it are not loaded")  # fmt: skip
    group.add_argument("--append_prefix", default="", metavar="PREFIX",
                       help="prefix to prepend to tensor names, after --remove_prefix")  # fmt: skip
    group.add_argument("--skip_layers", nargs="+", default=list(IGNORED_TENSORS), metavar="TEXT",
                       help="tensors whose name contains one of these need not be in the checkpoint")  # fmt: skip
    group.add_argument("--dry_run", action="store_true", help="print the key-matching report and exit")


def add_dashboard_flags(group: FlagGroup, default_name: str) -> None:
    group.add_argument("--name", type=folder_name, help=f"name of the run (default: {default_name})")
    group.add_argument("--wandb", action="store_true", help="log to Weights & Biases too")
    group.add_argument("--tensorboard", action="store_true", help="log to TensorBoard too, in the run folder")
    group.add_argument("--project", default=DEFAULT_PROJECT, help="Weights & Biases project")
    group.add_argument("--entity", help="Weights & Biases entity (default: your own)")
    group.add_argument("--offline", action="store_true", help="keep Weights & Biases logs on disk, without a network")


def view_size(text: str) -> int:
    """An argparse type: side of a view in pixels."""
    side: int = number(int, 8)(text)
    return side


def drop_probability(text: str) -> float:
    """An argparse type: a probability below 1, at which nothing would be left."""
    value: float = number(float, 0, 0.99)(text)
    return value


def gpu_list(args: Namespace) -> list[int] | None:
    """--gpus with its type."""
    return None if args.gpus is None else [int(gpu) for gpu in args.gpus]
