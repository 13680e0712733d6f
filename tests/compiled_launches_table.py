"""Print the kernel launches of a training step on a GPU, as it is and with --compile, counted on a machine without one.

    python3 -m tests.compiled_launches_table                       every method, some minutes each
    python3 -m tests.compiled_launches_table simclr "byol --small_views 2"

A step of ResNet-18 with the 3x3 stem, 256 images, views of 32 pixels, bf16-mixed, each method's own heads and
optimizer; ClusterFit has 1,000 clusters, and methods that need a transformer a ViT-S/16 and views of 224 pixels. As it
is: calls of ATen operators that launch a kernel, of which some launch more than one. --compile: launches in the code
that torch generates for an H100 (tests/helpers/generated_for_cuda.py): kernels of Triton + torch's own convolutions,
matrix products and other operators. GB: what these launches read and write, by inductor's count. The optimizer is not
compiled. Nothing runs, and nothing here is a time.
"""

import copy
import functools
import sys
from typing import NamedTuple
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backbones.build import build_backbone, choose_stem
from cli.plan import resolve
from cli.pretrain import method_args, parse_pretraining
from data.datasets import DATASETS
from methods import METHODS
from methods.base import Method
from tests.helpers.commands import TEACHER, clusters_file, construct, teacher_file
from tests.helpers.generated_for_cuda import CountLaunches, Graphs, generate_for_cuda
from tests.helpers.images import read
from tests.helpers.python_backward import grad
from utils.batch import Batch
from utils.plan import TrainingSet

HEAD = (
    "method", "forward", "backward", "optimizer", "sum", "forward, `--compile`", "backward, `--compile`",
    "sum, `--compile`", "GB, `--compile`",
)  # fmt: skip


class Launches(NamedTuple):
    """Launches of a training step. graphs: the code of the compiled one."""

    forward: int
    backward: int
    optimizer: int
    graphs: Graphs

    def cells(self) -> list[str]:
        """The cells of a row of the table, after the first."""
        codes = [self.graphs.forward, self.graphs.backward]
        compiled = self.optimizer + sum(code.triton + code.external for code in codes)
        return [
            *map(str, (self.forward, self.backward, self.optimizer, self.forward + self.backward + self.optimizer)),
            *(f"{code.triton} + {code.external}" for code in codes),
            str(compiled),
            " + ".join(f"{code.bytes / 1e9:.1f}" for code in codes),
        ]


def build(case: str, backbone: tuple[nn.Module, int] | None, images: int) -> Method:
    """The method as its flags' defaults make it, on the CPU; on a network and its width if they are given."""
    name, *words = case.split()
    files = ["--teacher", TEACHER, "--teacher_weights", teacher_file()] if name == "distill" else []
    files += ["--cluster_file", clusters_file(k=1000)] if name == "clusterfit" else []
    network = ["vit_small_patch16_224", "--large_size", "224"] if METHODS[name].transformer_name else ["resnet18"]
    argv = ["digits", *network, "--batch_size", str(images), "--precision", "bf16-mixed", "--gpus", "0"]
    args = parse_pretraining([*argv, "--method", name, *words, *files], METHODS, DATASETS)
    facts = TrainingSet("digits", 1438, 1438, 10, read().train.fingerprint())
    plan = resolve(args, facts, choose_stem("auto", args.backbone, args.large_size))
    backbone = copy.deepcopy(backbone) or build_backbone(plan.backbone, *plan.views.sizes)
    method = construct(method_args(args, METHODS), plan, *backbone).train()
    method.setup("fit")  # strides stay when it moves
    return method


def to_fake_gpu(method: Method) -> Batch:
    """Move the method to the GPU of FakeTensorMode, and return a batch of its views there."""

    def moved(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        method._apply(moved)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    images, views = method.plan.batch.forward_batch, method.plan.views
    sizes = [views.large_size] * method.large_views + [views.small_size] * views.small_views
    index = torch.arange(images, device="cuda")
    return Batch(index, [torch.randn(images, 3, size, size, device="cuda") for size in sizes], index % 10)


def total_loss(method: Method, batch: Batch) -> torch.Tensor:
    """The loss of a training step, as Lightning computes it."""
    with torch.autocast("cuda", torch.bfloat16):
        out = method.compute_losses(batch)
    return out["loss"] + out["probe_loss"]


def eager_launches(method: Method) -> tuple[int, int, int]:
    """Launches of the forward pass, the backward pass and the optimizer's second step, as it is."""
    batch, trained = to_fake_gpu(method), [p for p in method.parameters() if p.requires_grad]
    optimizer = method.configure_optimizers()["optimizer"]  # type: ignore[index,typeddict-item]
    with CountLaunches() as forward:
        loss = total_loss(method, batch)
    with CountLaunches() as backward:
        gradients = grad(
            [loss], trained, allow_unused=True
        )  # on a GPU they have the weights' layout: nothing is copied
    for p, gradient in zip(trained, gradients, strict=True):
        p.grad = gradient
    for _ in range(2):  # the first step makes the moments too
        with CountLaunches() as step:
            optimizer.step()
    return forward.count, backward.count, step.count


def launches(case: str, backbone: tuple[nn.Module, int] | None = None, images: int = 256) -> Launches:
    """Count the launches of a step of the method, its flags after its name; see the docstring of the module."""
    with generate_for_cuda() as graphs:
        method, compiled = (build(case, backbone, images) for _ in range(2))
        with FakeTensorMode():
            eager = eager_launches(method)
            batch = to_fake_gpu(compiled)
            backend = functools.partial(torch.compile, backend=graphs.compile, fullgraph=True)
            with mock.patch.object(torch, "compile", backend):
                compiled.compile_losses()
            torch._dynamo.reset()
            total_loss(compiled, batch)
    return Launches(*eager, graphs)


def main() -> None:
    """Print the table of the named methods, or of all."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for case in sys.argv[1:] or METHODS:
        print(f"| `{case}` | {' | '.join(launches(case).cells())} |", flush=True)


if __name__ == "__main__":
    main()
