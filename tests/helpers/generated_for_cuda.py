"""The code that torch.compile generates for an H100, on a machine without one; nothing of it runs.

    with generate_for_cuda() as graphs, FakeTensorMode():
        torch.compile(function, backend=graphs.compile)(*tensors_on_cuda)
    graphs.forward, graphs.backward       # LaunchedCode: launches and bytes

Tensors of FakeTensorMode have shapes, strides, dtypes and a device, and no values. Dynamo, AOTAutograd and inductor
treat them as they treat those of a GPU, and inductor is told the properties of an H100. The backward pass is traced by
tests/helpers/python_backward.py, since torch's engine asks the driver.

What differs from a GPU: matrix products are not padded to multiples of 8, since torch measures there whether it pays,
and attention is computed as separate products, since torch asks the driver which fused kernel it may take.
"""

import ast
import contextlib
import copy
import functools
import sys
import types
from dataclasses import dataclass
from unittest import mock

import torch
import torch._functorch.config
import torch.utils._triton
from torch import nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx, config
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.cuda_operators import NO_KERNEL, is_view
from tests.helpers.python_backward import grad

H100 = types.SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, total_memory=80 * 2**30,
)  # fmt: skip
CODE_OF_TORCH = ("extern_kernels.", "torch.ops.", "aten.")  # convolutions, matrix products, what inductor cannot write


@dataclass
class LaunchedCode:
    """The code of a graph. triton: launches of kernels that it defines; external: calls of torch's own operators.

    bytes: what the kernels and operators read and write, by inductor's own count.
    """

    code: str
    bytes: int

    @functools.cached_property
    def calls(self) -> list[str]:
        """Names of the functions that the body of the generated code calls, in turn."""
        (body,) = (f for f in ast.walk(ast.parse(self.code)) if isinstance(f, ast.FunctionDef) and f.name == "call")
        return [ast.unparse(node.func) for node in ast.walk(body) if isinstance(node, ast.Call)]

    @property
    def triton(self) -> int:
        return sum(name.startswith("triton_") and name.endswith(".run") for name in self.calls)

    @property
    def external(self) -> int:
        return sum(name.startswith(CODE_OF_TORCH) for name in self.calls)


class Graphs:
    """A backend of torch.compile, and the code of the graphs that it was given: the forward and the backward one."""

    def __init__(self) -> None:
        self.codes: list[LaunchedCode] = []

    @property
    def forward(self) -> LaunchedCode:
        return self.codes[0]

    @property
    def backward(self) -> LaunchedCode:
        return self.codes[1]

    def compile(self, graph, inputs):
        """Generate the code of both graphs, and return a function that runs the forward one operator by operator."""
        return compile_fx.compile_fx(graph, inputs, inner_compile=self._generate)

    def _generate(self, graph, inputs, **kwargs):
        def run(args):
            values = list(args)
            args.clear()
            return as_it_was(*values)

        as_it_was = copy.deepcopy(graph)  # inductor changes the graph
        run._boxed_call = True
        with mock.patch.object(GraphLowering, "compile_to_module", lambda lowering: self._keep(lowering)):
            compile_fx.compile_fx_inner(graph, inputs, **kwargs)
        return run

    def _keep(self, lowering):
        code, _ = GraphLowering.codegen(lowering)
        size = sum(node.get_read_write_buffers_sizes() for node in lowering.scheduler.nodes)
        self.codes.append(LaunchedCode(code.value, size))
        return types.SimpleNamespace(call=None)


@contextlib.contextmanager
def generate_for_cuda():
    """A `Graphs`, while torch believes in an H100; see the docstring of the module."""
    torch._C._ensureCUDADeviceGuardSet()
    nothing = {name: lambda *_: None for name in ("_lazy_init", "set_rng_state")}  # dynamo wants one function for each
    first = {name: lambda *_: 0 for name in ("current_device", "_exchange_device", "_maybe_exchange_device")}
    stubs = nothing | first | {
        "is_available": lambda: True, "device_count": lambda: 1, "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: H100, "is_bf16_supported": lambda *_, **__: True,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8), "is_current_stream_capturing": lambda: False,
    }  # fmt: skip
    patches = [(torch.cuda, name, stub) for name, stub in stubs.items()] + [
        (CudaInterface, "get_device_properties", staticmethod(lambda *_: H100)),
        (torch.accelerator, "is_available", lambda: False),  # else dynamo asks for the stream
        (torch.autograd, "grad", grad),
        (sys.modules["torch.optim.optimizer"], "_foreach_supported_types", [nn.Parameter, torch.Tensor, FakeTensor]),
        (torch.utils._triton, "triton_hash_with_backend", lambda: "no driver"),
        (joint_graph, "lazy_init", lambda *_: None),
        (joint_graph, "constant_fold_uniform_value", _fold_constants_on_cpu),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for owner, name, stub in patches:
            stack.enter_context(mock.patch.object(owner, name, stub))
        stack.enter_context(config.patch(shape_padding=False, fx_graph_cache=False, compile_threads=1))
        functorch = {"force_non_lazy_backward_lowering": True, "enable_autograd_cache": False}
        stack.enter_context(torch._functorch.config.patch(functorch))
        yield Graphs()


_fold_constants = joint_graph.constant_fold_uniform_value


def _fold_constants_on_cpu(graph):
    """Inductor's pass, which computes constants on their device."""
    there = [(node, node.kwargs) for node in graph.graph.nodes if node.kwargs.get("device") is not None]
    for node, kwargs in there:
        node.kwargs = kwargs | {"device": torch.device("cpu")}
    _fold_constants(graph)
    for node, kwargs in there:
        node.kwargs = kwargs


class CountLaunches(TorchDispatchMode):
    """Counts calls of operators of ATen that launch a kernel, as the pretended device does."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        schema = func._schema
        out = (
            None if schema.name.startswith("aten::_fused_") else func(*args, **kwargs or {})
        )  # it knows no fake tensor
        if schema.name not in NO_KERNEL and not is_view(func):
            self.count += schema.is_mutable or any(isinstance(x, torch.Tensor) for x in tree_leaves(out))
        return out
