"""Judge a pretrained backbone: weights -> data -> evaluations -> table.

python3 main_linear.py digits resnet18 --pretrained_feature_extractor trained_models/RUN --evaluation probe knn fewshot
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

from data.datasets import DATASETS, Data, read_dataset
from data.pipelines import build_pipeline, choose_pipeline
from data.views import ViewSpec
from evaluation.judge import EVALUATIONS, Numbers, RawPixels, Subject, judge, table
from utils.args import parse_judging
from utils.backbones import build_backbone, choose_stem
from utils.distributed import join, leave, rank, same_on_all_ranks
from utils.errors import UserError, run
from utils.export import check_target, export_backbone, run_card
from utils.hardware import choose_device, spread
from utils.keys import key_flags
from utils.logs import log_rows
from utils.run import create_folder, new_run_id, provenance, write_json
from utils.weights import Weights, check_told, guess_stem, load_backbone, open_weights


def backbones(args: Namespace, weights: Weights, stem: str, size: int) -> dict[str, nn.Module]:
    """Row of the table -> network: with --baselines what to beat, and last the pretrained backbone."""
    rows: dict[str, nn.Module] = {}
    torch.manual_seed(int(weights.told.get("seed", args.seed)))  # the weights that the run started from
    untrained, _ = build_backbone(args.backbone, stem, size)
    if args.baselines:
        rows |= {"raw pixels": RawPixels(), f"{args.backbone}, untrained": untrained}
    pretrained, _ = build_backbone(args.backbone, stem, size)
    load_backbone(weights, pretrained, key_flags(args), print if rank() == 0 else lambda _: None)
    return rows | {f"{args.backbone}, {weights.told.get('method', 'pretrained')}": pretrained}


def read(args: Namespace) -> Data:
    data = read_dataset(args.dataset, args.data_folder, args.train_dir, args.val_dir)
    if data.labelled and data.val is not None:
        return data
    raise UserError(f"{args.dataset} has no labels to judge by or no validation images; name --train_dir and --val_dir")


def evaluate(
    args: Namespace, data: Data, networks: dict[str, nn.Module], size: int, folder: Path
) -> dict[str, Numbers]:
    """Row of the table -> its numbers."""
    pipeline, _ = choose_pipeline(args.pipeline, data, size)
    module = build_pipeline(pipeline, data, [ViewSpec(size, count=2)], args)
    flip = DATASETS[args.dataset].views.get("flip", 0.5)
    crops = module.with_views([ViewSpec(size, scale=(0.08, 1.0), flip=flip, jitter=0.0, gray=0.0)])
    on = choose_device(args)
    return {name: judge(Subject(name, net, module, crops, on, args, folder)) for name, net in networks.items()}


def report(args: Namespace, argv: list[str], data: Data, rows: dict[str, Numbers], folder: Path) -> None:
    """The table on the screen, in the folder and on the dashboard."""
    assert data.val is not None
    told = f"{args.dataset}: top-1 in per cent on {len(data.val):,} held-out images, {len(data.train):,} for training"
    print(f"\n{told}\n\n{table(rows)}\n\n{folder}")
    write_json(folder / "args.json", {"argv": argv, "typed": vars(args)} | provenance())
    write_json(folder / "summary.json", rows)
    log_rows(args, folder, rows)


def main(argv: list[str]) -> None:
    args = parse_judging(argv, list(DATASETS), list(EVALUATIONS))
    spread(args, argv)
    join(choose_device(args).type == "cuda")
    told = (weights := open_weights(args.pretrained_feature_extractor)).told
    size = args.large_size or int(told.get("large_size", DATASETS[args.dataset].views.get("large_size", 224)))
    stem = told.get("used_stem") or choose_stem(args.stem, args.backbone, size, guess_stem(weights.tree))[0]
    check_told(args, weights, stem)
    if args.export:
        check_target(args.export[0], Path(args.export[1]))
    networks = backbones(args, weights, stem, size)
    if args.dry_run:
        return
    rows: dict[str, Numbers] = {}
    if args.evaluation:
        data = read(args)
        run_id = same_on_all_ranks(new_run_id(args, args.name or "linear"))
        folder = create_folder(args, run_id) if rank() == 0 else Path(args.output) / run_id
        rows = evaluate(args, data, networks, size, folder)
        if rank() == 0:
            report(args, argv, data, rows, folder)
    if args.export and rank() == 0:
        (*_, (name, network)) = networks.items()
        info = DATASETS.get(told.get("dataset", ""))
        inputs = {"mean": str(info.mean), "std": str(info.std)} if info else {}
        card = run_card(weights, args.backbone, stem, rows.get(name, {})) | inputs
        print("\n".join(map(str, export_backbone(args.export[0], Path(args.export[1]), network, card, size))))
    leave()


if __name__ == "__main__":
    run(main)
