"""Judge a pretrained backbone: weights -> data -> evaluations -> table.

python3 main_linear.py digits resnet18 --pretrained_feature_extractor trained_models/RUN --evaluation probe knn fewshot
"""

from argparse import Namespace

import torch
from torch import nn

from data.datasets import DATASETS, read_dataset
from data.pipelines import build_pipeline, choose_pipeline
from data.views import ViewSpec
from evaluation.features import extract
from evaluation.judge import EVALUATIONS, RawPixels, table
from utils.args import Parser, add_data_flags, add_evaluation_flags, add_machine_flags, add_run_flags
from utils.backbones import build_backbone, choose_stem
from utils.errors import UserError, run
from utils.hardware import choose_hardware
from utils.run import create_folder, new_run_id, provenance, write_json
from utils.weights import find_weights, load_backbone, read_metadata


def parse(argv: list[str]) -> Namespace:
    parser = Parser(description="Judge a pretrained backbone.")
    add_data_flags(parser, list(DATASETS))
    add_evaluation_flags(parser, list(EVALUATIONS))
    add_machine_flags(parser)
    add_run_flags(parser)
    return parser.parse_strictly(argv, {})


def backbones(args: Namespace) -> tuple[dict[str, nn.Module], int]:
    """(row of the table -> network, side of a view): the pretrained backbone and, with --baselines, what to beat."""
    path = find_weights(args.pretrained_feature_extractor)
    told = read_metadata(path)
    if told.get("backbone", args.backbone) != args.backbone:
        raise UserError(f"{path} holds a {told['backbone']}, not a {args.backbone}; name that backbone")
    size = int(told.get("large_size", DATASETS[args.dataset].views.get("large_size", 224)))
    stem = told.get("used_stem") or choose_stem(args.stem, args.backbone, size)[0]
    if args.stem not in ("auto", stem):
        raise UserError(f"{path} was trained with the {stem} stem, not {args.stem}; leave --stem out")
    rows: dict[str, nn.Module] = {}
    torch.manual_seed(int(told.get("seed", args.seed)))  # the weights that the run started from
    untrained, _ = build_backbone(args.backbone, stem, size)
    if args.baselines:
        rows |= {"raw pixels": RawPixels(), f"{args.backbone}, untrained": untrained}
    pretrained, _ = build_backbone(args.backbone, stem, size)
    load_backbone(path, pretrained)
    return rows | {f"{args.backbone}, {told.get('method', 'pretrained')}": pretrained}, size


def main(argv: list[str]) -> None:
    args = parse(argv)
    hardware = choose_hardware(args)
    networks, size = backbones(args)
    data = read_dataset(args.dataset, args.data_folder, args.train_dir, args.val_dir)
    if not data.labelled or data.val is None:
        raise UserError(
            f"{args.dataset} has no labels to judge by or no validation images; name --train_dir and --val_dir"
        )
    pipeline, _ = choose_pipeline(args.pipeline, data, size)
    module = build_pipeline(pipeline, data, [ViewSpec(size)], args)
    device = torch.device(hardware.accelerator, args.gpus[0] if args.gpus else 0)
    folder = create_folder(args, new_run_id(args, "linear"))
    rows = {}
    for name, network in networks.items():
        network.to(device)
        train, val = (extract(network, module.plain_dataloader(s, device), f"{name}, {s}") for s in ("train", "val"))
        rows[name] = {k: v for e in args.evaluation for k, v in EVALUATIONS[e](train, val, args, data.classes).items()}
    told = f"{args.dataset}: top-1 in per cent on {len(data.val):,} held-out images, {len(data.train):,} for training"
    print(f"\n{told}\n\n{table(rows)}\n\n{folder}")
    write_json(folder / "args.json", {"argv": argv, "typed": vars(args)} | provenance())
    write_json(folder / "summary.json", rows)


if __name__ == "__main__":
    run(main)
