"""The rows of the benchmark: Lookalike, its baseline, and what a row requires."""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from bench import checkpoints, dali, lightly, storage, train, usual, views
from bench.evaluation import evaluation
from bench.kmeans import kmeans
from bench.sides import Make, Settings, Work
from bench.task import BATCH, LARGE, QUARTER, WORKERS, Task
from methods import METHODS

REMEDIES = {
    "datasets": "datasets is not installed: pip install -r requirements-datasets.txt",
    "faiss": "faiss is not installed: pip install -r requirements-faiss.txt",
    "lightly": "Lightly is not installed: pip install -r requirements-bench.txt",
    "triton": "Triton is not installed: pip install triton",
    "nvidia.dali": "DALI is not installed: pip install -r requirements-dali.txt",
}

FILES = {  # flags that a method requires; `train.build_method` makes what they name
    "clusterfit": ["--cluster_file clusters.npz"],
    "distill": ["--teacher resnet18 --teacher_weights teacher.safetensors"],
}
HEADS = {"--hidden_mlp": 512, "--proj_dim": 128, "--pred_hidden_mlp": 512}  # widths in the rows of the methods


@dataclass(frozen=True)
class Row:
    """A row of the table.

    unit: of a rate (more is better), or "s" or "ms" (fewer are better). ours, theirs: title and function of Lookalike
    and of the baseline. cores: that each side may use, 0 for all. reads: the folder of `Settings` whose images the row
    takes. library: that the row needs. cuda: only with a CUDA device.
    """

    unit: str
    ours: tuple[str, Make]
    theirs: tuple[str, Make] | None = None
    cores: int = 0
    reads: str | None = None
    library: str | None = None
    cuda: bool = False

    def missing(self, settings: Settings) -> str | None:
        """The reason why the row cannot be measured here, or None."""
        if self.reads and getattr(settings, self.reads) is None:
            return f"needs --{self.reads} FOLDER"
        if self.library and not installed(self.library):
            return REMEDIES[self.library]
        return "needs a CUDA device" if self.cuda and not torch.cuda.is_available() else None


def installed(library: str) -> bool:
    parent = library.rpartition(".")[0]
    return (not parent or installed(parent)) and find_spec(library) is not None


def view_rows() -> dict[str, Row]:
    small = partial(Row, "views/s", ("memory", views.memory_pipeline), cores=1)
    large = partial(Row, "views/s", (f"stream, {WORKERS} threads", views.streamed), cores=WORKERS, reads="photographs")
    loader = f"torchvision, {WORKERS} workers"
    return {
        "decode": Row("images/s", ("decode_file", views.decode), ("Pillow", usual.decode), 1, "photographs"),
        "views-32-v1": small(theirs=("torchvision v1 on Pillow images", partial(usual.one_by_one, v1=True))),
        "views-32-v2": small(theirs=("torchvision v2 on tensors", partial(usual.one_by_one, v1=False))),
        "views-32-same": small(theirs=("torchvision's functions, same parameters", views.one_by_one)),
        "views-224": large(theirs=(f"{loader}, Pillow's blur", partial(usual.loaded, blur="pillow"))),
        "views-224-blur": large(theirs=(f"{loader}, its own blur", partial(usual.loaded, blur="torchvision"))),
        "views-224-dali": large(theirs=(f"DALI on CPU, {WORKERS} threads", dali.views), library="nvidia.dali"),
        "views-224-memory": Row(
            "views/s",
            ("memory, from 256 px", partial(views.memory_pipeline, spec=LARGE)),
            ("torchvision v1 on Pillow images", partial(usual.one_by_one, v1=True, spec=LARGE)),
            1,
        ),
        "views-224-gpu": Row(
            "ms",
            ("512 views by the Triton kernels", views.on_gpu),
            ("512 views by the batched executor", partial(views.on_gpu, batched=True)),
            library="triton",
            cuda=True,
        ),
    }


def storage_rows() -> dict[str, Row]:
    """Reading and decoding of the same photographs in random order, on one core."""
    row = partial(Row, "images/s", theirs=("class folders", storage.folders), cores=1, reads="photographs")
    return {
        "read-shards": row(ours=("tar shards", storage.shards)),
        "read-parquet": row(ours=("one Parquet file", storage.parquet), library="datasets"),
    }


def growth_rows() -> dict[str, Row]:
    """The cost of `stream` for other settings than two views of 224 pixels in batches of 32."""
    small = replace(LARGE, size=96, scale=(0.05, 0.14))

    def row(title: str, make: Make) -> Row:
        base = ("two views of 224 px", views.streamed)
        return Row("views/s", (title, make), base, cores=WORKERS, reads="photographs")

    def other(title: str, **settings: Any) -> Row:
        return row(title, partial(views.streamed, **settings))

    return {
        "grow-one-view": other("one view, counted as two", specs=(LARGE,)),
        "grow-small-views": other("and four of 96 px, not counted", specs=(LARGE, LARGE, *[small] * 4)),
        "grow-96": other("views of 96 px", specs=(replace(LARGE, size=96),) * 2),
        "grow-160": other("views of 160 px", specs=(replace(LARGE, size=160),) * 2),
        "grow-batch": other("batches of 128", batch_size=4 * BATCH),
        "grow-one-thread": other("one thread", workers=1),
        "grow-gpu": row("decoded and cropped only, for a GPU", views.cropped),
    }


def train_rows(cuda: bool) -> dict[str, Row]:
    """Whole training runs, on the small images of --cifar or on scans of digits at the same size."""
    batch, queue, steps, more = (256, 65536, 200, 200) if cuda else (64, 4096, 8, 20)
    simclr = Task("--method simclr", batch, steps)
    quarter = Task("--method simclr", batch, more, network=QUARTER)
    transformer = Task("--method simclr", 16, 6, network="vit_tiny_patch16_224", patch_size=4)
    large = Task("--method simclr", 16, 6, 224, "imagenet")
    large_quarter = Task("--method simclr", 16, 12, 224, "imagenet", network=QUARTER)

    def row(task: Task, baseline: Callable[..., Work], title: str, library: str | None = None) -> Row:
        command = f"main_contrastive.py {task.command}"
        sides = (command, partial(train.whole, task=task)), (title, partial(baseline, task=task))
        return Row("images/s", *sides, reads=task.reads, library=library)

    def step(task: Task) -> Row:
        return row(task, train.bare, "bare step on ready tensors")

    def loop(task: Task) -> Row:
        return row(task, usual.train, f"plain loop, torchvision, {WORKERS} workers")

    def other(task: Task) -> Row:
        return row(task, lightly.train, f"Lightly in the precision of Lookalike, {WORKERS} workers", "lightly")

    def example(task: Task) -> Row:
        return row(task, partial(lightly.train, own=True), f"Lightly in float32, {WORKERS} workers", "lightly")

    return {
        "train-32-step": step(simclr),
        "train-32-step-nnclr": step(Task(f"--method nnclr --queue_size {queue}", batch, steps)),
        "train-32-step-stem": step(Task("--method simclr", batch, more, stem="imagenet")),
        "train-32-step-quarter": step(quarter),
        "train-32-step-attention": attention_row(transformer),
        "train-32": loop(simclr),
        "train-32-quarter": loop(quarter),
        "train-32-lightly": other(simclr),
        "train-32-lightly-quarter": other(quarter),
        "train-32-lightly-float32": example(simclr),
        "train-32-lightly-float32-quarter": example(quarter),
        "train-224": loop(large),
        "train-224-quarter": loop(large_quarter),
    } | compiled_rows(simclr)


def attention_row(task: Task) -> Row:
    """A vision transformer's step with the attention that training chooses on the device, beside timm's own choice."""
    ours, built = (partial(train.bare, task=task, cpu_time=True, as_built=as_built) for as_built in (False, True))
    return Row(
        "images/s", ("bare step", ours), ("with the attention that timm chooses", built), cores=1, reads=task.reads
    )


def compiled_rows(task: Task) -> dict[str, Row]:
    """What torch.compile gains in a whole run and in the bare step, and CUDA graphs beside that."""
    compiled = replace(task, flags=f"{task.flags} --compile")
    whole, graphs = partial(train.whole, task=task), partial(train.bare, task=task, compile_mode="reduce-overhead")
    step = "bare step, compiled", partial(train.bare, task=task, compile_mode="default")
    return {
        "train-32-compiled": Row(
            "images/s",
            (f"main_contrastive.py {compiled.command}", partial(train.whole, task=compiled)),
            ("the same without --compile", whole),
            reads=task.reads,
        ),
        "train-32-step-compiled": Row(
            "images/s", step, ("bare step", partial(train.bare, task=task)), reads=task.reads
        ),
        "train-32-step-graphs": Row(
            "images/s", ("bare step, compiled, as CUDA graphs", graphs), step, reads=task.reads, cuda=True
        ),
    }


def method_rows() -> dict[str, Row]:
    """The bare step of each method beside SimCLR's, with heads of one size, on one core, by its CPU time.

    A ResNet-18 with a quarter of the channels; a ViT of 5.4 M weights with patches of 4 px for the methods that need
    one, and for the SimCLR beside them.
    """
    cnn = Task("", 64, 6, network=QUARTER)
    vit = Task("", 16, 4, network="vit_tiny_patch16_224", patch_size=4)

    def task_of(name: str, task: Task) -> Task:
        parser = ArgumentParser(add_help=False)
        METHODS[name].add_args(parser)
        sizes = [f"{flag} {size}" for flag, size in HEADS.items() if flag in parser._option_string_actions]
        return replace(task, flags=" ".join([f"--method {name}", *sizes, *FILES.get(name, [])]))

    def row(name: str, task: Task) -> Row:
        ours, simclr = (partial(train.bare, task=task_of(method, task), cpu_time=True) for method in (name, "simclr"))
        return Row("images/s", (f"a step of {name}", ours), ("a step of simclr", simclr), cores=1, reads=task.reads)

    others = [name for name in METHODS if name != "simclr"]
    return {f"step-{name}": row(name, vit if METHODS[name].transformer_name else cnn) for name in others}


def checkpoint_rows() -> dict[str, Row]:
    """Training with and without a save of a checkpoint, on one core, which the writer shares with the training."""
    task = Task("--method simclr --optimizer adamw --lr 0.001", 16, 10**6)
    sides = [partial(checkpoints.minute, task=task, save=save) for save in (True, False)]
    row = Row("images/s", ("a checkpoint a minute", sides[0]), ("no checkpoint", sides[1]), cores=1, reads="cifar")
    return {"checkpoint-minute": row}


def evaluation_rows() -> dict[str, Row]:
    def clusters(n: int, d: int, k: int) -> Row:
        ours, theirs = (partial(kmeans, backend=b, n=n, d=d, k=k) for b in ("torch", "faiss"))
        title = f"k-means iteration, {n:,} x {d} in {k:,}"
        return Row("s", (title, ours), ("faiss", theirs), library="faiss")

    return {
        "knn": Row("s", ("kNN, k = 20 and 200", partial(evaluation, name="knn"))),
        "logistic": Row("s", ("logistic, penalty chosen", partial(evaluation, name="logistic"))),
        "quality": Row("s", ("quality of 10,000 features", partial(evaluation, name="quality"))),
        "kmeans-512": clusters(50_000, 512, 1000),
        "kmeans-128": clusters(50_000, 128, 100),
    }


def all_rows() -> dict[str, Row]:
    training = train_rows(torch.cuda.is_available()) | method_rows() | checkpoint_rows()
    return view_rows() | storage_rows() | growth_rows() | training | evaluation_rows()
