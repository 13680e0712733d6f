"""Evaluate pretrained backbones, or export one: weights -> data -> evaluations -> table.

python3 main_linear.py digits resnet18 --pretrained_feature_extractor trained_models/RUN --evaluation logistic knn
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

import backbones.load as load
from backbones.build import at_layer, build_backbone
from backbones.export import check_target, export_backbone, run_card
from backbones.match_keys import key_flags
from cli.evaluate import DEFAULT_RUN_NAME, parse_evaluation
from cli.flags import gpu_list
from cli.plan import dashboard_config
from data.datasets import DATASETS, Data, read_dataset
from data.pipelines.choose import build_pipeline, choose_pipeline
from data.views import ViewSpec
from evaluation.evaluations import EVALUATIONS, evaluate, resolve_settings
from evaluation.table import report
from evaluation.target import EvaluationTarget, NetworkInfo, RawPixels
from runs.folder import new_run_id, temporary_on_error, write_bad_images
from runs.loggers import build_loggers, log_results
from utils.distributed import broadcast_str, destroy_process_group, init_process_group, rank, rank_zero_print
from utils.errors import run_cli
from utils.files import write_json
from utils.hardware import choose_hardware, local_device, relaunch_with_torchrun
from utils.plan import BackboneConfig
from utils.provenance import provenance
from utils.scores import ResultRow

Networks = list[tuple[NetworkInfo, nn.Module]]


def build_networks(args: Namespace, sources: list[load.Weights], size: int) -> Networks:
    """The networks to evaluate, the last pretrained one last; --baselines come first."""
    networks: Networks = []
    if args.baselines:
        torch.manual_seed(int(sources[0].metadata.get("seed", args.seed)))  # the weights that the run started from
        config = BackboneConfig(args.backbone, load.stem_of(args.stem, args.backbone, sources[0], size))
        untrained = at_layer(build_backbone(config, size)[0], args.layer)
        networks.append((NetworkInfo("raw pixels", "raw pixels"), RawPixels()))
        networks.append((NetworkInfo(f"{args.backbone}, untrained", args.backbone), untrained))
    for weights in sources:
        stem = load.stem_of(args.stem, args.backbone, weights, size)
        load.check_compatible(weights, args.backbone, args.stem, stem)
        network, _ = build_backbone(BackboneConfig(args.backbone, stem), size)
        load.load_backbone(weights, network, key_flags(args), rank_zero_print)
        networks.append((describe(args, weights, several=len(sources) > 1), at_layer(network, args.layer)))
    return networks


def describe(args: Namespace, weights: load.Weights, several: bool) -> NetworkInfo:
    """Facts about pretrained weights; the title names the data set of the pretraining where that is another one."""
    method, pretrained_on = weights.metadata.get("method", ""), weights.metadata.get("dataset", "")
    title = f"{args.backbone}, {weights.name if several else method or 'pretrained'}"
    if pretrained_on not in ("", args.dataset):
        title += f" on {pretrained_on}"
        rank_zero_print(f"  note: {weights.path} was pretrained on {pretrained_on} and is evaluated on {args.dataset}")
    return NetworkInfo(title, args.backbone, method, pretrained_on, args.layer, str(weights.path),
                       weights.default_output_dir(args.output))  # fmt: skip


def evaluate_networks(args: Namespace, argv: list[str], data: Data, networks: Networks, size: int) -> list[ResultRow]:
    """A row per network; the table is printed and written to a new run folder."""
    val = None if data.val is None else data.val.labels
    settings = resolve_settings(args.evaluation, args, args.dataset, data.train.labels, val,
                                lambda text: rank_zero_print(f"  note: {text}"))  # fmt: skip
    hardware = choose_hardware(args.accelerator, gpu_list(args))
    pipeline, _ = choose_pipeline(args.pipeline, data, size, args.cache, hardware.accelerator)
    module = build_pipeline(pipeline, data, [ViewSpec(size, count=2)], args.batch_size, args.seed, args.num_workers,
                            args.cache, hardware.accelerator)  # fmt: skip
    flip = DATASETS[args.dataset].views.get("flip", 0.5)
    crops = module.with_views([ViewSpec(size, scale=(0.08, 1.0), flip=flip, jitter=0.0, gray=0.0)])
    dashboard = dashboard_config(args, DEFAULT_RUN_NAME)
    run_id = broadcast_str(new_run_id(args.run_id, dashboard.name, args.dataset, args.backbone, dashboard.wandb))
    with temporary_on_error(args.output, run_id) as folder:
        rows = []
        for info, network in networks:
            device = local_device(hardware)
            target = EvaluationTarget(network, info, args.dataset, module, crops, device, folder, args.seed)
            rows.append(evaluate(target, settings))
        write_bad_images(folder, data.bad)
    if rank() == 0:
        write_json(folder / "args.json", {"argv": argv, "flags": vars(args)} | provenance())
        report(args.dataset, data, rows, folder)
        numbers = {f"{row.slug}/{key}": number for row in rows for key, number in row.numbers().items()}
        loggers = build_loggers(dashboard, vars(args), folder, resumed=False)
        log_results(loggers, numbers, sorted(folder.glob("*.png")))
    return rows


def export(args: Namespace, weights: load.Weights, network: nn.Module, size: int, rows: list[ResultRow]) -> None:
    """Write the backbone for another library, with a model card that has the scores of its row."""
    card = run_card(weights, args.backbone, load.stem_of(args.stem, args.backbone, weights, size),
                    rows[-1].numbers() if rows else {})  # fmt: skip
    if info := DATASETS.get(weights.metadata.get("dataset", "")):
        card |= {"mean": str(info.mean), "std": str(info.std)}
    for path in export_backbone(args.export[0], Path(args.export[1]), network, card, size):
        print(path)


def main(argv: list[str]) -> None:
    """Parse, load the weights, evaluate them, export one."""
    args = parse_evaluation(argv, list(DATASETS), EVALUATIONS)
    hardware = choose_hardware(args.accelerator, gpu_list(args))
    relaunch_with_torchrun(hardware, argv)
    init_process_group(hardware.accelerator == "cuda")
    sources = load.open_all_weights(args.pretrained_feature_extractor)
    info = DATASETS[args.dataset]
    size = load.choose_size(args.large_size, sources, info.views.get("large_size", 224))
    if args.export:
        check_target(args.export[0], Path(args.export[1]))
    networks = build_networks(args, sources, size)
    if args.dry_run:
        return
    rows: list[ResultRow] = []
    if args.evaluation:
        data = read_dataset(args.dataset, args.data_folder, args.train_dir, args.val_dir, args.on_bad_image)
        for note in data.notes:
            rank_zero_print(f"  note: {note}")
        for weights in sources:
            load.check_classes(args.dataset, weights.metadata, info.classes, data.classes)
        rows = evaluate_networks(args, argv, data, networks, size)
    if args.export and rank() == 0:
        export(args, sources[-1], networks[-1][1], size, rows)
    destroy_process_group()


if __name__ == "__main__":
    run_cli(main)
