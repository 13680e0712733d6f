"""Judge pretrained backbones, or hand one on: weights -> data -> evaluations -> table.

python3 main_linear.py digits resnet18 --pretrained_feature_extractor trained_models/RUN --evaluation probe knn fewshot
"""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.build import at_layer, build_backbone
from backbones.export import check_target, export_backbone, run_card
from backbones.load import (
    Weights,
    check_classes,
    check_compatible,
    choose_size,
    load_backbone,
    open_all_weights,
    stem_of,
)
from backbones.match_keys import key_flags
from cli.evaluate import parse_evaluation
from data.datasets import DATASETS, Data, read_dataset
from data.pipelines.choose import build_pipeline, choose_pipeline
from data.views import ViewSpec
from evaluation.evaluations import EVALUATIONS, check_and_fill_defaults, evaluate
from evaluation.table import Numbers, report
from evaluation.target import EvaluationTarget, RawPixels
from runs.folder import new_folder, new_run_id, write_bad_images
from utils.distributed import broadcast_str, destroy_process_group, init_process_group, rank
from utils.errors import run_cli
from utils.hardware import choose_device, relaunch_with_torchrun


def backbones(args: Namespace, sources: list[Weights], size: int, say: Callable[[str], Any]) -> dict[str, nn.Module]:
    """Row of the table -> network: with --baselines what to beat, then the pretrained backbones, the last one last."""
    rows: dict[str, nn.Module] = {}
    if args.baselines:
        torch.manual_seed(int(sources[0].metadata.get("seed", args.seed)))  # the weights that the run started from
        untrained, _ = build_backbone(args.backbone, stem_of(args, sources[0], size), size)
        rows |= {"raw pixels": RawPixels(), f"{args.backbone}, untrained": at_layer(untrained, args.layer)}
    for weights in sources:
        check_compatible(args, weights, stem := stem_of(args, weights, size))
        network, _ = build_backbone(args.backbone, stem, size)
        load_backbone(weights, network, key_flags(args), say)
        title = weights.name if len(sources) > 1 else weights.metadata.get("method", "pretrained")
        rows[f"{args.backbone}, {title}"] = at_layer(network, args.layer)
    return rows


def evaluate(
    args: Namespace, data: Data, networks: dict[str, nn.Module], size: int, folder: Path
) -> dict[str, Numbers]:
    """Row of the table -> its numbers."""
    pipeline, _ = choose_pipeline(args.pipeline, data, size, args.cache)
    module = build_pipeline(pipeline, data, [ViewSpec(size, count=2)], args)
    flip = DATASETS[args.dataset].views.get("flip", 0.5)
    crops = module.with_views([ViewSpec(size, scale=(0.08, 1.0), flip=flip, jitter=0.0, gray=0.0)])
    on = choose_device(args)
    return {
        name: evaluate(EvaluationTarget(name, net, module, crops, on, args, folder)) for name, net in networks.items()
    }


def main(argv: list[str]) -> None:
    args = parse_evaluation(argv, list(DATASETS), list(EVALUATIONS))
    relaunch_with_torchrun(args, argv)
    init_process_group(choose_device(args).type == "cuda")
    say = print if rank() == 0 else lambda *_: None
    sources = open_all_weights(args.pretrained_feature_extractor)
    size = choose_size(args, sources, DATASETS[args.dataset].views.get("large_size", 224))
    if args.export:
        check_target(args.export[0], Path(args.export[1]))
    networks = backbones(args, sources, size, say)
    if args.dry_run:
        return
    rows: dict[str, Numbers] = {}
    if args.evaluation:
        data = read_dataset(args.dataset, args.data_folder, args.train_dir, args.val_dir, args.on_bad_image)
        for note in data.notes:
            say(f"  note: {note}")
        for weights in sources:
            check_classes(args, weights.metadata, DATASETS[args.dataset].classes, data.classes)
        made_from = {"source": str(sources[-1].path), "home": sources[-1].default_output_dir(args.output)}
        planned = check_and_fill_defaults(
            Namespace(**vars(args) | made_from), data.train.labels, None if data.val is None else data.val.labels, say
        )
        run_id = broadcast_str(new_run_id(args, args.name or "linear"))
        with new_folder(args, run_id) as folder:
            rows = evaluate(planned, data, networks, size, folder)
            write_bad_images(folder, data.bad)
        if rank() == 0:
            held = f", {len(data.val):,} held out" if data.val is not None else ""
            told = f"{args.dataset}: {len(data.train):,} training images{held}; accuracies are top-1 in per cent"
            report(args, argv, told, rows, folder)
    if args.export and rank() == 0:
        (*_, (name, network)) = networks.items()
        told_by = DATASETS.get(sources[-1].metadata.get("dataset", ""))
        inputs = {"mean": str(told_by.mean), "std": str(told_by.std)} if told_by else {}
        card = run_card(sources[-1], args.backbone, stem_of(args, sources[-1], size), rows.get(name, {})) | inputs
        print("\n".join(map(str, export_backbone(args.export[0], Path(args.export[1]), network, card, size))))
    destroy_process_group()


if __name__ == "__main__":
    run_cli(main)
