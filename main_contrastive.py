"""Pretrain an image backbone without labels.

python3 main_contrastive.py digits resnet18 --method nnclr --epochs 20
python3 main_contrastive.py imagenet100 resnet18 --method nnclr --data_folder /datasets --gpus 0 1
python3 main_contrastive.py --resume trained_models/RUN
"""

import time
from dataclasses import asdict

import pytorch_lightning as pl

from backbones.build import build_backbone, choose_stem
from backbones.load import backbone_metadata, load_pretrained
from backbones.teacher import with_teacher
from cli.plan import describe, notes, resolve
from cli.pretrain import method_args, parse_pretraining, parse_resumed
from data.datasets import DATASETS, read_dataset, training_set
from data.pipelines.choose import build_pipeline, choose_pipeline, worker_notes
from data.views import view_specs
from evaluation.callbacks import evaluation_callbacks
from methods import METHODS
from runs.folder import open_run_folder, write_bad_images, write_summary, writes_run_folder
from runs.loggers import build_loggers, log_pictures
from runs.resume import continued_plan, pop_resume_flag, resume_argv
from runs.trainer import build_trainer, deterministic_algorithms, expected_messages_hidden, training_callbacks
from utils.distributed import rank_zero_print
from utils.errors import run_cli
from utils.sync_batchnorm import synchronize_batch_norm


@writes_run_folder
def main(argv: list[str]) -> None:
    """Parse, read the data, build the backbone and the method, fit, and leave a run folder."""
    started, (resume, argv) = time.time(), pop_resume_flag(argv)
    if resume:
        recorded, argv = resume_argv(resume, argv)
        flags, argv = parse_resumed(recorded.argv, argv, METHODS, DATASETS)
    args = parse_pretraining(argv, METHODS, DATASETS)
    data = read_dataset(args.dataset, args.data_folder, args.train_dir, args.val_dir, args.on_bad_image)
    plan = resolve(args, training_set(args.dataset, data), choose_stem(args.stem, args.backbone, args.large_size))
    if resume:
        plan = continued_plan(recorded, flags, args, plan)
    accelerator = plan.hardware.accelerator
    pipeline, reason = choose_pipeline(args.pipeline, data, args.large_size, args.cache, accelerator)
    pl.seed_everything(plan.seed, verbose=False)
    backbone, dim = build_backbone(plan.backbone, *plan.views.sizes, tokens_for=METHODS[plan.method].transformer_name)
    if not resume:
        load_pretrained(args, backbone)
        if args.dry_run:
            return
    settings, (plan, networks) = method_args(args, METHODS), with_teacher(args, plan)
    method = METHODS[plan.method](settings, plan, backbone, dim, **networks)
    rank_zero_print(f"{plan.method} on {args.dataset}: {len(data.train):,} images, {data.classes or 'no'} classes")
    rank_zero_print(f"  {'pipeline':<16} {pipeline} ({reason})")
    rank_zero_print(describe(plan, vars(settings), method.trainable_parameters(), method.checkpoint_bytes()))
    for note in (*data.notes, *worker_notes(pipeline, args.num_workers, plan.hardware), *notes(plan, args, method)):
        rank_zero_print(f"  note: {note}")
    module = build_pipeline(pipeline, data, view_specs(plan.views, method.large_views), plan.batch.batch_size,
                            plan.seed, args.num_workers, args.cache, accelerator, plan.hardware.precision)  # fmt: skip
    folder = open_run_folder(resume, args, plan, argv)
    write_bad_images(folder, data.bad)
    rank_zero_print(f"  {'run folder':<16} {folder}")
    if plan.hardware.processes > 1:
        synchronize_batch_norm(method, accelerator == "cuda")
    if plan.hardware.compile:
        method.compile_losses()
    evaluations = evaluation_callbacks(plan, folder, data.val is not None, log_pictures)
    to_resume, facts = f"python3 main_contrastive.py --resume {folder}", backbone_metadata(asdict(plan))
    callbacks = training_callbacks(plan, folder, evaluations, facts, to_resume)
    loggers = build_loggers(plan.logging.dashboard, vars(args), folder, resumed=resume is not None)
    with expected_messages_hidden(), deterministic_algorithms(plan.hardware.deterministic):
        trainer = build_trainer(plan, folder, callbacks, loggers, validate=data.val is not None and data.labelled)
        trainer.fit(method, datamodule=module, ckpt_path=resume and resume / "last.ckpt", weights_only=True)
    write_summary(folder, plan, time.time() - started)
    rank_zero_print(f"done: {folder}")


if __name__ == "__main__":
    run_cli(main)
