"""Pretrain an image backbone without labels.

python3 main_contrastive.py digits resnet18 --method nnclr --epochs 20
python3 main_contrastive.py imagenet100 resnet18 --method nnclr --data_folder /datasets --gpus 0 1
python3 main_contrastive.py --resume trained_models/RUN
"""

import time

import pytorch_lightning as pl

from data.datasets import DATASETS, read_dataset
from data.pipelines import build_pipeline, choose_pipeline, worker_notes
from data.views import view_specs
from evaluation.online import online_callbacks
from methods import METHODS
from utils.args import parse
from utils.backbones import build_backbone
from utils.checkpoint import Saver
from utils.distributed import launched_rank, synchronize_batch_norm
from utils.errors import run
from utils.logs import Progress, Speed, build_loggers
from utils.resolve import describe, resolve
from utils.run import check_same_run, prepare_folder, resumed_words, split_resume, write_bad_images, write_summary
from utils.trainer import build_trainer
from utils.weights import describe_backbone, start_from


def main(argv: list[str]) -> None:
    """Parse, read the data, build the backbone and the method, fit, and leave a run folder."""
    started = time.time()
    say = print if launched_rank() == 0 else lambda *_: None
    resume, words = split_resume(argv)
    if resume:
        before, words = resumed_words(resume, words)
        check_same_run(parse(before, METHODS, DATASETS), parse(words, METHODS, DATASETS))
    typed = parse(words, METHODS, DATASETS)

    data = read_dataset(typed.dataset, typed.data_folder, typed.train_dir, typed.val_dir, typed.on_bad_image)
    known = int((data.train.labels >= 0).sum())
    args = resolve(typed, len(data.train), known, data.classes, data.train.fingerprint())
    pipeline, reason = choose_pipeline(args.pipeline, data, args.large_size, args.cache)
    pl.seed_everything(args.seed, verbose=False)
    backbone, dim = build_backbone(
        args.backbone, args.used_stem, args.large_size, args.small_size if args.small_views else None
    )
    if not resume:
        start_from(args, backbone, say)
        if args.dry_run:
            return
    method = METHODS[args.method](args, backbone, dim)
    say(f"{args.method} on {args.dataset}: {len(data.train):,} training images, {data.classes or 'no'} classes")
    notes = [f"  note: {note}" for note in (*data.notes, *worker_notes(pipeline, args))]
    say("\n".join([f"  {'pipeline':<14} {pipeline} ({reason})", describe(args), *notes]))
    module = build_pipeline(pipeline, data, view_specs(args, method.large_views), args)

    folder = prepare_folder(resume, typed, args, words)
    write_bad_images(folder, data.bad)
    say(f"  {'run folder':<14} {folder}")
    if args.processes > 1:
        synchronize_batch_norm(method, args.accelerator == "cuda")
    if args.compile:
        method.compile_networks()
    loggers = build_loggers(args, folder, resumed=resume is not None)
    judges = online_callbacks(args, folder, data.val is not None)
    callbacks = [Speed(), *judges, Progress(), Saver(folder, describe_backbone(args))]
    trainer = build_trainer(args, callbacks, loggers, validate=data.val is not None and data.labelled)
    trainer.fit(method, datamodule=module, ckpt_path=str(resume / "last.ckpt") if resume else None, weights_only=True)
    if trainer.is_global_zero:
        write_summary(folder, args, time.time() - started)
        say(f"done: {folder}")


if __name__ == "__main__":
    run(main)
