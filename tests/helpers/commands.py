"""Commands of short runs, and the plans and methods that they lead to."""

import functools
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from backbones.build import build_backbone, choose_stem
from backbones.load import save_backbone
from backbones.teacher import with_teacher
from cli.plan import resolve
from cli.pretrain import method_args, parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from methods.base import Method
from tests.helpers.images import read
from tests.helpers.method_cases import case_of
from utils.cluster_file import Clusters, write_clusters
from utils.plan import BackboneConfig, Plan, TrainingSet

SIZES = {"--hidden_mlp": "16", "--proj_dim": "8", "--pred_hidden_mlp": "16", "--queue_size": "40"}


ROOT = Path(__file__).resolve().parents[2]


TEACHER = "test_resnet.r160_in1k"
TINY = ["digits", "test_resnet.r160_in1k", "--precision", "32", "--num_workers", "0"]


def backbone_words(method: str, otherwise: str) -> list[str]:
    """The backbone of a command, with its flags: a small ViT where the method needs one."""
    return ["test_vit", "--patch_size", "4"] if METHODS[method].transformer_name else [otherwise]


def tiny(method: str) -> list[str]:
    """TINY with a backbone that the method takes."""
    return [TINY[0], *backbone_words(method, TINY[1]), *TINY[2:]]


def flags_of(method: str, *words: str) -> set[str]:
    """The flags of the method that have an effect beside these words, which do not name them."""
    parser = ArgumentParser(add_help=False)
    METHODS[method].add_args(parser)
    flags = {option for action in parser._actions for option in action.option_strings} - set(words)
    if "--no_predictor" in words:
        flags.discard("--pred_hidden_mlp")
    if "--regress" in words:
        flags.discard("--queue_size")
    if "--neighbours" in flags:  # not among the words: no queue
        flags.discard("--queue_size")
    return flags


def small(method: str, *words: str, data_folder: str | None = None) -> list[str]:
    """The words, and small sizes (and clusters of the images) of what the method has and they do not mention."""
    own, flags = case_of(method).sizes, flags_of(method, *words)
    words = (*words, *(part for i, part in enumerate(own) if own[i - i % 2] not in words))
    flags -= set(words)
    clusters = ["--cluster_file", clusters_file(data_folder)] if "--cluster_file" in flags else []
    teacher = ["--teacher", TEACHER, "--teacher_weights", teacher_file()] if "--teacher" in flags else []
    sizes = (part for flag, size in SIZES.items() if flag in flags for part in (flag, size))
    return [*sizes, *clusters, *teacher, *words]


@functools.cache
def teacher_file(name: str = TEACHER) -> str:
    """A file of random weights of a network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        network, _ = build_backbone(BackboneConfig(name, "imagenet"), 32)
    path = Path(tempfile.mkdtemp()) / "teacher.safetensors"
    save_backbone(path, network, {"backbone": name, "stem": "imagenet"})
    return str(path)


@functools.cache
def clusters_file(data_folder: str | None = None, k: int = 4) -> str:
    """A file that puts these images in turn into k clusters."""
    train = read(data_folder).train
    about = {"dataset": "custom" if data_folder else "digits", "images": len(train), "fingerprint": train.fingerprint()}
    none = np.zeros((0, 0), np.float32)
    path = Path(tempfile.mkdtemp()) / "clusters.npz"
    write_clusters(path, Clusters(np.arange(len(train)) % k, np.arange(3), np.eye(k, dtype="f4"), none, none, about))
    return str(path)


def plan_of(method: str, *words: str, images: int = 1438, classes: int = 10) -> tuple[Namespace, Plan]:
    """(the method's own flags, the plan) of a small run on the digits."""
    args = parse_pretraining([*tiny(method), "--method", method, *small(method, *words)], METHODS, DATASETS)
    facts = TrainingSet("digits", images, images if classes else 0, classes, read().train.fingerprint())
    return method_args(args, METHODS), resolve(args, facts, choose_stem("auto", args.backbone, args.large_size))


def build_method(
    name: str, backbone: nn.Module, dim: int, *words: str, images: int = 1438, classes: int = 10
) -> Method:
    """A method on a backbone with features of width `dim`, with small heads, as the flags `words` ask for."""
    return construct(*plan_of(name, *words, images=images, classes=classes), backbone, dim)


def construct(settings: Namespace, plan: Plan, backbone: nn.Module, dim: int) -> Method:
    """The method of a plan, with its teacher where it has one."""
    plan, networks = with_teacher(settings, plan)
    return METHODS[plan.method](settings, plan, backbone, dim, **networks)


def words(method, output, *more):
    """A run of three short epochs on the digits."""
    queue = [] if "--queue_size" in case_of(method).sizes else ["--queue_size", "300"]  # a batch must fit in
    queue = queue if "--queue_size" in flags_of(method, *more) else []
    folder = more[more.index("--data_folder") + 1] if "--data_folder" in more else None
    return [*tiny(method), "--method", method, *small(method, *queue, data_folder=folder), "--batch_size", "256",
            "--epochs", "3", "--optimizer", "sgd", "--log_every", "1", "--knn_every", "2",
            "--output", str(output), *more]  # fmt: skip


def environment() -> dict[str, str]:
    """The variables for a new process: one thread, no GPU, and a Weights & Biases client of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env.pop("WANDB_SERVICE", None)
    return env


def start(argv, **kwargs):
    """python3 with these words, in the `environment`; its output in one stream."""
    return subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)  # fmt: skip


def evaluate_run(output: Path, run: str, few: list[str], *more: str) -> None:
    """The quick evaluations of a run on the class folders of `few`, into the run folder "evaluated"."""
    import main_linear  # here: the processes of Ranks do without

    main_linear.main(["custom", TINY[1], *few[:2], "--pretrained_feature_extractor", str(output / run), "--evaluation",
                      "logistic", "knn", "fewshot", "--shots", "5", "--knn_k", "5", "--baselines", "--output",
                      str(output), "--run_id", "evaluated", *more])  # fmt: skip
