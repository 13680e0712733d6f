"""Evaluate pretrained backbones, or export one: weights -> data -> evaluations -> table.
python3 main_linear.py digits resnet18 --pretrained_feature_extractor trained_models/RUN --evaluation logistic knn
"""

import cli.quick_help  # noqa: F401  # isort: skip  # first of all: --help imports no library
from argparse import Namespace

import torch

import backbones.load as load
from backbones.build import at_layer, build_backbone, part_name
from backbones.export import check_target, export_backbone, run_card
from cli.evaluate import DEFAULT_RUN_NAME, changed_evaluation_flags, evaluation_words, parse_evaluation
from cli.plan import dashboard_config, data_source
from data.datasets import DATASETS, read_dataset
from data.pipelines.evaluation_modules import evaluation_modules
from evaluation.evaluations import EVALUATIONS, evaluate, resolve_settings
from evaluation.table import report
from evaluation.target import RAW_PIXELS, EvaluationTarget, NetworkInfo, Networks, RawPixels, pretrained_info
from runs.folder import new_run_id, temporary_on_error, write_bad_images, writes_run_folder
from runs.report import publish_results
from utils.distributed import destroy_process_group, rank, rank_zero_print
from utils.errors import run_cli
from utils.hardware import choose_hardware, local_device, start_processes
from utils.peers import init_process_group
from utils.scores import Rows


def build_networks(args: Namespace, sources: list[load.Weights], size: int) -> Networks:
    """The networks to evaluate: --baselines, then the pretrained ones."""
    networks: Networks = []
    if args.baselines:
        torch.manual_seed(int(sources[0].metadata.get("seed", args.seed)))  # the weights that the run started from
        start = load.requested_config(args, sources[0], size)
        untrained = at_layer(build_backbone(start, size)[0], args.layer, args.last_blocks)
        networks = [(RAW_PIXELS, RawPixels()), (NetworkInfo(f"{args.backbone}, untrained", args.backbone), untrained)]
    for weights in sources:
        network = load.load_requested(args, weights, size)
        part = part_name(args.layer, args.last_blocks, args.pool)
        info = pretrained_info(args.backbone, part, args.dataset, weights, args.output, several=len(sources) > 1)
        networks.append((info, at_layer(network, args.layer, args.last_blocks)))
    return networks


def evaluate_all(args: Namespace, argv: list[str], sources: list[load.Weights], networks: Networks, size: int) -> Rows:
    """A row per network; the table is printed and written to a new run folder."""
    data = read_dataset(**data_source(args))
    for note in data.notes:
        rank_zero_print(f"  note: {note}")
    for weights in sources:
        load.check_classes(args.dataset, weights.metadata, DATASETS[args.dataset].classes, data.classes)
    settings = resolve_settings(args.evaluation, args, args.dataset, data, rank_zero_print)
    hardware, dashboard = choose_hardware(args.accelerator, args.gpus), dashboard_config(args, DEFAULT_RUN_NAME)
    modules = evaluation_modules(args.dataset, data, size, args.pipeline, args.batch_size, args.seed, args.num_workers,
                                 args.cache, hardware.accelerator)  # fmt: skip
    run_id = new_run_id(args.run_id, dashboard.name, args.dataset, args.backbone, dashboard.wandb)
    with temporary_on_error(args.output, run_id, automatic=not args.run_id, ledger=args.record) as folder:
        shared = (args.dataset, *modules, local_device(hardware), folder, args.seed)
        rows = [evaluate(EvaluationTarget(network, info, *shared), settings) for info, network in networks]
        write_bad_images(folder, data.bad)
    if rank() == 0:
        report(args.dataset, data, rows, folder, {"argv": argv, "flags": vars(args)}, args.record)
        changed = changed_evaluation_flags(argv, list(DATASETS), EVALUATIONS)
        publish_results(dashboard, vars(args), folder, rows, "python3 main_linear.py", changed)
    return rows


def export(args: Namespace, source: load.Weights, net: torch.nn.Module, size: int, scores: dict[str, float]) -> None:
    """Write the backbone for another library, with a model card that has its scores."""
    config = load.requested_config(args, source, size)
    card = run_card(source, args.backbone, config.stem, scores, "python3 main_contrastive.py")
    info = DATASETS.get(source.metadata.get("dataset", ""))
    card |= {"patch_size": str(config.patch_size), "pool": str(config.pool)}
    card |= {"mean": str(info.mean), "std": str(info.std)} if info else {}
    print(*export_backbone(args.export[0], args.export[1], net, card, size), sep="\n")


@writes_run_folder
def main(argv: list[str]) -> None:
    """Parse, load the weights, evaluate them, export one."""
    args = parse_evaluation(argv := evaluation_words(argv, [*DATASETS], EVALUATIONS), [*DATASETS], EVALUATIONS)
    hardware = choose_hardware(args.accelerator, args.gpus)
    start_processes(hardware, argv)
    init_process_group(local_device(hardware), hardware.processes)
    sources = load.open_all_weights(args.pretrained_feature_extractor)
    size = load.choose_size(args.large_size, sources, DATASETS[args.dataset].views.get("large_size", 224))
    check_target(args.export)
    networks = build_networks(args, sources, size)
    if args.dry_run:
        return
    rows = evaluate_all(args, argv, sources, networks, size) if args.evaluation else []
    if args.export and rank() == 0:
        export(args, sources[-1], networks[-1][1], size, rows[-1].numbers() if rows else {})
    destroy_process_group()


if __name__ == "__main__":
    run_cli(main)
