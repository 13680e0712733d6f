"""Pretrain an image backbone without labels.

python3 main_contrastive.py digits resnet18 --method nnclr --epochs 20
python3 main_contrastive.py imagenet100 resnet18 --method nnclr --data_folder /datasets --gpus 0 1
python3 main_contrastive.py --resume trained_models/RUN
"""

import cli.quick_help  # noqa: F401  # isort: skip  # first of all: --help imports no library
import time
from dataclasses import asdict

from backbones.build import build_backbone, choose_stem
from backbones.load import backbone_metadata, load_pretrained
from backbones.teacher import with_teacher
from cli.plan import data_source, describe, notes, resolve
from cli.pretrain import changed_pretraining_flags, method_args, parse_pretraining, parse_resumed, pretraining_words
from data.datasets import DATASETS, read_dataset, training_set
from data.pipelines.choose import build_pipeline, choose_pipeline, data_notes
from data.views import view_specs
from evaluation.callbacks import evaluation_callbacks
from methods import METHODS
from runs.folder import open_run_folder, writes_run_folder
from runs.loggers import build_loggers, log_pictures
from runs.preview import write_preview
from runs.report import RunReport
from runs.resume import continued_plan, pop_resume_flag, resume_argv
from runs.trainer import build_trainer, deterministic_algorithms, expected_messages_hidden, training_callbacks
from utils.distributed import rank_zero_print
from utils.errors import run_cli
from utils.random import seed_everything
from utils.sync_batchnorm import synchronize_batch_norm


@writes_run_folder
def main(argv: list[str]) -> None:
    """Parse, read the data, build the backbone and the method, fit, and leave a run folder."""
    started, (resume, argv) = time.time(), pop_resume_flag(pretraining_words(argv, METHODS, DATASETS))
    if resume:
        recorded, argv = resume_argv(resume, argv)
        flags, argv = parse_resumed(recorded.argv, argv, METHODS, DATASETS)
    args = parse_pretraining(argv, METHODS, DATASETS)
    data = read_dataset(**data_source(args))
    plan = resolve(args, training_set(args.dataset, data), choose_stem(args.stem, args.backbone, args.large_size))
    if resume:
        plan = continued_plan(recorded, flags, args, plan)
    accelerator = plan.hardware.accelerator
    pipeline, reason = choose_pipeline(args.pipeline, data, args.large_size, args.cache, accelerator)
    seed_everything(plan.seed)
    backbone, dim = build_backbone(plan.backbone, *plan.views.sizes, tokens_for=METHODS[plan.method].transformer_name)
    if not resume:
        load_pretrained(args, backbone)
        if args.dry_run:
            return
    settings, (plan, networks) = method_args(args, METHODS), with_teacher(args, plan)
    method = METHODS[plan.method](settings, plan, backbone, dim, **networks)
    lines = describe(plan, pipeline, reason, vars(settings), method.trainable_parameters(), method.checkpoint_bytes())
    remarks = [*data_notes(data, plan.views, pipeline, args.num_workers, plan.hardware), *notes(plan, args, method)]
    rank_zero_print("\n  note: ".join([lines, *remarks]))
    module = build_pipeline(pipeline, data, view_specs(plan.views, method.large_views), plan.batch.batch_size,
                            plan.seed, args.num_workers, args.cache, accelerator, plan.hardware.precision)  # fmt: skip
    if args.preview:
        write_preview(args.output, plan, method, module, lines, remarks)
        return
    folder = open_run_folder(resume, args, plan, argv, data.bad)
    if plan.hardware.processes > 1:
        synchronize_batch_norm(method, accelerator == "cuda")
    if plan.hardware.compile:
        method.compile_losses()
    evaluations = evaluation_callbacks(plan, folder, data.val is not None, log_pictures)
    report = RunReport(folder, "python3 main_contrastive.py", changed_pretraining_flags(argv, METHODS, DATASETS), plan)
    callbacks = training_callbacks(plan, folder, evaluations, backbone_metadata(asdict(plan)), report)
    loggers = build_loggers(plan.logging.dashboard, vars(args), folder, resumed=resume is not None)
    with expected_messages_hidden(), deterministic_algorithms(plan.hardware.deterministic):
        trainer = build_trainer(plan, folder, callbacks, loggers, validate=data.val is not None and data.labelled)
        trainer.fit(method, datamodule=module, ckpt_path=resume and resume / "last.ckpt", weights_only=True)
    report.finish(plan, time.time() - started, args.record, data.splits())


if __name__ == "__main__":
    run_cli(main)
