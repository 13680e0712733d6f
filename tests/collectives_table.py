"""Collectives of a training step of every method: how many, and how many bytes a GPU sends; memory of large batches.

    python3 -m tests.collectives_table

runs one step of ResNet-50 with each method's own heads and views for each number of GPUs, as rank 0 of a group that
torch pretends ("fake": collectives take and give tensors of the right sizes and move nothing), and prints a table.
Counted, not timed:

* loss: what the method and the online probe call, forward and backward.
* norms: two of each batch norm of each view, as `torch.nn.SyncBatchNorm` calls them: the moments forward, two sums
  backward; backward none where no gradient passes (teachers, the online probe).
* gradients: the buckets of DistributedDataParallel.

A second table has the most memory that tensors of a loss hold at one time, forward and backward, for 32,768 images on
64 GPUs, in chunks of rows as by default and with the whole matrix of similarities.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from backbones.build import build_backbone, choose_stem
from cli.plan import resolve
from cli.pretrain import method_args, parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from methods.base import Method
from methods.nnclr import nnclr_loss
from methods.simclr import nt_xent, supcon
from tests.helpers.collectives import Collective, CountCollectives
from tests.helpers.commands import TEACHER, clusters_file, construct, teacher_file
from tests.helpers.images import read
from tests.helpers.memory import PeakMemory
from tests.helpers.method_cases import case_of
from utils import row_chunks
from utils.batch import Batch
from utils.plan import TrainingSet
from utils.precision import l2_normalize

IMAGES, WORLDS = 64, (8, 64)  # images of a GPU: 4096 on 64 GPUs
BUCKETS = [2**20, 25 * 2**20]  # bytes of DDP's first bucket and of the others
FLOAT = 4  # bytes
WIDTH = 128  # of an embedding in the second table


def build(case: str) -> Method:
    """The method on ResNet-50 as its flags' defaults make it, for 1000 classes or clusters."""
    name, *words = case.split()
    files = ["--teacher", TEACHER, "--teacher_weights", teacher_file()] if name == "distill" else []
    files += ["--cluster_file", clusters_file(k=1000)] if name == "clusterfit" else []
    vit = METHODS[name].transformer_name is not None
    network = ["vit_small_patch16_224", "--large_size", "224"] if vit else ["resnet50", "--stem", "imagenet"]
    argv = ["digits", *network, "--batch_size", str(IMAGES), "--precision", "32"]
    args = parse_pretraining([*argv, "--method", name, *words, *files], METHODS, DATASETS)
    stem = choose_stem(args.stem, args.backbone, args.large_size)
    plan = resolve(args, TrainingSet("digits", 1438, 1438, 1000, read().train.fingerprint()), stem)
    return construct(method_args(args, METHODS), plan, *build_backbone(plan.backbone, *plan.views.sizes))


@contextmanager
def count_norms(method: nn.Module, world: int) -> Iterator[list[Collective]]:
    """The collectives that the method's batch norms would call if they were synchronized."""
    calls: list[Collective] = []

    def seen(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        channels = inputs[0].shape[1]
        calls.append(Collective("all_gather", world * (2 * channels + 1) * FLOAT))
        if inputs[0].requires_grad:
            calls.append(Collective("all_reduce", 2 * channels * FLOAT))

    norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_hook(seen) for norm in norms]
    yield calls
    for handle in handles:
        handle.remove()


def step(method: Method, world: int) -> dict[str, list[Collective]]:
    """The collectives of one step by their origin: "loss", "norms" and "gradients"."""
    sizes = [32] * method.large_views + [32] * method.plan.views.small_views
    views = [torch.randn(IMAGES, 3, size, size) for size in sizes]
    with count_norms(method, world) as norms, CountCollectives() as counted:
        out = method.compute_losses(Batch(torch.arange(IMAGES), views, torch.arange(IMAGES)))
        (out["loss"] + out["probe_loss"]).backward()
    trained = [p for p in method.parameters() if p.requires_grad]
    buckets, _ = dist._compute_bucket_assignment_by_size(trained[::-1], BUCKETS)
    gradients = [Collective("all_reduce", sum(trained[::-1][i].nbytes for i in bucket)) for bucket in buckets]
    return {"loss": counted.calls, "norms": norms, "gradients": gradients}


def peak_memory(name: str, views: int, max_entries: int) -> int:
    """Bytes that the tensors of a loss of 512 of 32,768 images hold at their peak; its matrices have max_entries."""
    embeddings = [torch.randn(512, WIDTH).requires_grad_() for _ in range(views)]
    rows = l2_normalize(torch.randn(4096, WIDTH))
    index = [torch.randint(4096, (512,)) for _ in range(2)]
    with mock.patch.object(row_chunks, "MAX_ENTRIES", max_entries), PeakMemory() as memory:
        if name == "nt_xent":
            loss = nt_xent(embeddings, 0.1)["loss"]
        elif name == "supcon":
            loss = supcon(embeddings, torch.randint(1000, (512,)), 0.1)["loss"]
        else:
            loss = nnclr_loss(rows, index, [l2_normalize(p) for p in embeddings], 0.1)
        loss.backward()
    return memory.peak


def print_memory() -> None:
    """Print the second table."""
    print("\n| loss | views | similarities of a GPU | whole matrix, MiB | chunks, MiB |")
    print("|---|---|---|---|---|")
    dist.init_process_group("fake", rank=0, world_size=64, store=FakeStore())
    for name, views in product(("nt_xent", "supcon", "info_nce"), (2, 4)):
        shape = "512 x 32,768" if name == "info_nce" else f"{512 * views:,} x {32768 * views:,}"
        terms = f"{4 * (views - 1)} x " if name == "info_nce" else ""
        sizes = [peak_memory(name, views, limit) / 2**20 for limit in (2**60, row_chunks.MAX_ENTRIES)]
        print(f"| `{name}` | {views} | {terms}{shape} | {sizes[0]:,.0f} | {sizes[1]:,.0f} |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Print the tables; the first one of the named cases, or of all."""
    cases = [" ".join([name, words]).strip() for name in METHODS for words in ("", *case_of(name).variants)]
    print("| method | GPUs | loss: calls | MB | norms: calls | MB | gradients: calls | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for case in sys.argv[1:] or cases:
        method = build(case).train()
        for world in WORLDS:
            dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
            found = step(method, world)
            dist.destroy_process_group()
            cells = [f"{len(calls)} | {sum(c.sent(world) for c in calls) / 1e6:.2f}" for calls in found.values()]
            print(f"| `{case}` | {world} | {' | '.join(cells)} |", flush=True)
    print_memory()


if __name__ == "__main__":
    main()
