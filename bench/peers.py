"""Lightly's methods, or solo-learn's settings, with the images, network, length and seed of Lookalike's own runs.

    python3 -m bench.peers simclr --seed 0 --epochs 20 --data_folder datasets/cifar10-jpeg --record results/peers
    python3 -m bench.peers simclr --peer solo-learn --data_folder datasets/cifar10-jpeg --record results/peers

lightly: views, heads, losses and optimizers of the package with the settings of its CIFAR-10 benchmark. solo-learn: its
published settings, which are the recipes in bash_files/cifar10, run by main_contrastive.py. main_linear.py evaluates
both. docs/peers.md has the sources of the settings and the differences by design.
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import main_contrastive
import main_linear
from backbones.build import build_backbone, choose_stem
from backbones.load import METADATA_KEYS, save_backbone
from bench.lightly import Peer, parts
from bench.on_gpu import recipe
from bench.rows import REMEDIES, installed
from data.datasets import Data, read_dataset
from data.images import Images
from runs.checkpoint import WEIGHTS
from runs.folder import create_run_folder, writes_run_folder
from runs.trainer import expected_messages_hidden
from utils.arg_types import count, folder_name, positive_int
from utils.errors import UserError
from utils.files import OUTPUT
from utils.hardware import choose_hardware, choose_precision
from utils.ledger import check_ledger, data_facts, with_definitions, write_record
from utils.plan import BackboneConfig

METHODS, PEERS = ("simclr", "nnclr", "byol", "barlow_twins", "vicreg"), ("lightly", "solo-learn")
DATASET, SIZE, SPLITS = "cifar10", 32, ["--train_dir", "train", "--val_dir", "test"]


class ViewsInMemory(Dataset):
    """Lists of views of images that were decoded once; the transform gets the pixels of the file as a Pillow image."""

    def __init__(self, images: Images, transform: Any):
        pixels = (images.decode(i).permute(1, 2, 0).numpy() for i in range(len(images)))
        self.images, self.transform = [Image.fromarray(x) for x in pixels], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.images[i])
        return views


def train_lightly(args: argparse.Namespace, data: Data) -> Peer:
    """Train a method of Lightly from the weights with which Lookalike starts at this seed, and save the backbone."""
    pl.seed_everything(args.seed, verbose=False)
    config = BackboneConfig(args.backbone, *choose_stem("auto", args.backbone, SIZE))
    backbone, dim = build_backbone(config, SIZE)
    transform, module, head, criterion = parts(args.method, dim, SIZE, data)
    model = module(backbone, head, criterion, args.epochs, args.batch_size)
    views = ViewsInMemory(data.train, transform)
    batches = DataLoader(views, args.batch_size, shuffle=True, drop_last=True, num_workers=args.num_workers,
                         persistent_workers=args.num_workers > 0)  # fmt: skip
    quiet: Any = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    with expected_messages_hidden():
        pl.Trainer(devices=1, precision=args.precision, max_epochs=args.epochs, **quiet).fit(model, batches)
    facts = (f"{args.method} (Lightly {version('lightly')})", DATASET, args.backbone, config.stem, False, SIZE,
             data.classes, args.seed, None, 0.0, None)  # fmt: skip
    metadata = {name: str(fact) for name, fact in zip(METADATA_KEYS, facts, strict=True)}
    save_backbone(Path(args.output, args.run_id, WEIGHTS), backbone, metadata)
    return model


def data_words(args: argparse.Namespace) -> list[str]:
    return ["--data_folder", args.data_folder, *SPLITS, "--num_workers", str(args.num_workers)]


def solo_learn_words(args: argparse.Namespace) -> list[str]:
    """The recipe with this network and length, and a warm-up of at most a tenth of the run; its own is 10 epochs."""
    own = {"--epochs": args.epochs, "--warmup_epochs": min(10, args.epochs / 10), "--batch_size": args.batch_size,
           "--precision": args.precision, "--knn_every": 0, "--seed": args.seed, "--output": args.output,
           "--run_id": args.run_id} | ({"--record": args.record} if args.record else {})  # fmt: skip
    changed = [str(word) for flag_and_value in own.items() for word in flag_and_value]
    return [DATASET, args.backbone, *recipe(args.method)[2:], *data_words(args), *changed]


def parse(argv: list[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python3 -m bench.peers", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("method", choices=METHODS)
    add("--peer", choices=PEERS, default="lightly", help="whose method or settings (default: lightly)")
    add("--backbone", default="test_resnet.r160_in1k", help="as in main_contrastive.py (default: %(default)s)")
    add("--epochs", type=positive_int, default=20, help="passes over the training images (default: 20)")
    add("--batch_size", type=positive_int, default=256, help="images per step (default: 256)")
    add("--seed", type=count, default=0, help="of weights, order and views (default: 0)")
    add("--data_folder", required=True, help="CIFAR-10 as class folders in train/ and test/")
    add("--num_workers", type=count, default=0, help="processes that make views (default: 0, the main process does)")
    add("--precision", choices=["32", "bf16-mixed"], help="default: what main_contrastive.py takes on this machine")
    add("--output", default=OUTPUT, help="parent directory of run folders (default: %(default)s)")
    add("--run_id", type=folder_name, help="name of the run folder (default: as lightly-simclr-s0)")
    add("--record", metavar="DIR", help="directory of a ledger, for the records of the training and the evaluation")
    args = parser.parse_args(argv)
    args.precision = choose_precision(args.precision, choose_hardware("auto", None).accelerator)[0]
    args.run_id = args.run_id or f"{args.peer}-{args.method}-s{args.seed}"
    return args


@writes_run_folder
def main(argv: list[str]) -> None:
    """Train, save the backbone, evaluate it; two records with --record."""
    args = parse(argv)
    if args.peer == "solo-learn":
        main_contrastive.main(solo_learn_words(args))
    else:
        check_ledger(args.record)
        if not installed("lightly"):
            raise UserError(REMEDIES["lightly"])
        data = read_dataset(DATASET, args.data_folder, SPLITS[1], SPLITS[3])
        if len(data.train) < args.batch_size:
            raise UserError(f"--batch_size {args.batch_size}: only {len(data.train)} images to train on; lower it")
        create_run_folder(args.output, args.run_id)
        model = train_lightly(args, data)
        if args.record:
            record = {"kind": "peer", "argv": argv, "seed": args.seed, "data": data_facts(DATASET, data.splits()),
                      "seconds": round(model.seconds, 1), "scores": with_definitions(model.numbers),
                      "peer": f"lightly {version('lightly')}", "flags": vars(args)}  # fmt: skip
            write_record(Path(args.record), args.run_id, record)
    main_linear.main([DATASET, args.backbone, *data_words(args), "--pretrained_feature_extractor",
                      str(Path(args.output, args.run_id)), "--evaluation", "knn", "logistic", "--seed", str(args.seed),
                      "--output", args.output, "--run_id", f"{args.run_id}-evaluated",
                      *(["--record", args.record] if args.record else [])])  # fmt: skip


if __name__ == "__main__":
    from utils.errors import run_cli

    run_cli(main)
