"""A pretended CUDA device: its tensors say `cuda:0` and are computed on the CPU, with real values.

    with pretended_cuda() as device:
        main_contrastive.main([..., "--gpus", "0"])      # or any code that asks torch.cuda
    device.waits      # Counter of (stream, what, file:line): what made the host wait for the device
    device.launches   # Counter of (stream, operator); device.bytes: bytes that these calls read and wrote, by stream

Real are every value, shape, dtype, stride and alias; autocast with its lists for CUDA, GradScaler, fused and foreach
optimizers, checkpoints, and the whole of Lightning. What a CUDA device would refuse is refused: operands on two
devices, an operator without a CUDA kernel, `.numpy()`, a fused optimizer whose tensors have unlike strides. Memory that
nobody has written to is NaN.

It cannot show: races between streams (streams and events exist and order nothing) and memory that the allocator gives
away too early; the use of memory; cuDNN, cuBLAS and their rounding in half precision; torch.compile and CUDA graphs;
several devices in one process, NCCL and hooks of autograd such as DDP's; DALI; and any time. One launch is one call of
an operator of ATen: a foreach call may be several kernels, and an operator such as `mean` more than one. Bytes are
those of the operands and results of each call, as if nothing stayed in a cache.
"""

import contextlib
import os
import sys
import threading
import types
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from tests.helpers import cuda_operators
from tests.helpers.cuda_operators import (
    ASSIGNMENTS,
    EMPTY,
    HALVES,
    NO_KERNEL,
    has_cuda_kernel,
    is_view,
    map_tensors,
    tensors_in,
)
from tests.helpers.python_backward import backward

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
ROOMS = tuple(f"{ROOT}/{part}" for part in ("backbones", "bench", "cli", "data", "evaluation", "main_", "methods",
                                           "runs", "utils"))  # fmt: skip
aten = torch.ops.aten
_device = None  # the device, while `pretended_cuda` is entered


class OnCuda(torch.Tensor):
    """A tensor of the device. `values` are on the CPU, with the same strides and the same aliases."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values):
        assert not isinstance(values, OnCuda)
        x = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            layout=values.layout, device=_device.cuda, requires_grad=False,
        )  # fmt: skip
        x.values = values
        return x

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert _device is not None, "a tensor outlived the pretended device"
        return _device.call(func, args, kwargs or {})

    def __reduce_ex__(self, protocol):
        return self.values.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = type(self)(self.values.detach().clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                memo[id(self)]._is_param = True
        return memo[id(self)]

    def __repr__(self, **_):
        return f"OnCuda({tuple(self.shape)}, {self.dtype})"


def on_host(x):
    """The values of a tensor, wherever it is, as an ordinary tensor; nothing is counted."""
    return (x.values if isinstance(x, OnCuda) else x).detach()


class Device:
    """Computes every operator, and counts.

    waits: Counter of (stream, what, file:line), the stream being "training" or "side". launches: Counter of (stream,
    operator). bytes: stream -> what these launches read and wrote. cuda: where its tensors are; current: what
    `torch.cuda.set_device` was told.
    """

    def __init__(self, index=0):
        self.lock, self.cuda, self.current = threading.RLock(), torch.device("cuda", index), 0
        self.reset()

    def reset(self):
        """Begin to count again."""
        self.waits, self.launches, self.bytes = Counter(), Counter(), Counter()

    def call(self, func, args, kwargs):
        """One operator: refused, counted and computed."""
        name, tensors = func._schema.name, tensors_in((args, kwargs))
        ours = [x for x in tensors if isinstance(x, OnCuda)]
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        to_cuda, pinned = target is not None and target.type == "cuda", kwargs.get("pin_memory")
        if not ours and not to_cuda and not pinned:
            return func(*args, **kwargs)
        self.refuse_another(target)
        _refuse(func, name, tensors, ours, args)
        self._count_wait(func, name, args, kwargs, tensors, ours, target)
        args, kwargs = map_tensors(lambda x: x.values if isinstance(x, OnCuda) else x, (args, kwargs))
        if target is not None:
            kwargs["device"] = CPU
        if pinned:
            kwargs["pin_memory"] = False
        with torch._C.DisableTorchFunctionSubclass():
            out = _compute(func, name, args, kwargs)
        if name in EMPTY and out.is_floating_point():
            out.fill_(torch.nan)  # who reads what nobody wrote shall see it
        if pinned:
            out._pinned = True
            return out
        if name == "aten::copy_" and not isinstance(tensors[0], OnCuda):
            return tensors[0]
        if not (to_cuda if target is not None else ours and name != "aten::_local_scalar_dense"):
            return out
        wrappers = {id(x.values): x for x in ours}  # an operator in place returns the tensor that it was given
        out = map_tensors(lambda t: wrappers[id(t)] if id(t) in wrappers else OnCuda(t), out)
        self._count_launch(func, name, ours, out)
        return out

    def refuse_another(self, device):
        """Raise where a tensor or stream is asked for on a GPU that belongs to another process."""
        if device is None or (device := torch.device(device)).type != "cuda":
            return
        if (index := device.index or 0) != self.cuda.index:
            raise RuntimeError(f"cuda:{index} is asked for by a process that computes on {self.cuda}")

    def set_current(self, device):
        self.current = torch.device("cuda", device).index if isinstance(device, int) else torch.device(device).index

    def _count_launch(self, func, name, ours, out):
        if name in NO_KERNEL or is_view(func):
            return
        written = {id(x): x for x in tensors_in(out) if isinstance(x, OnCuda)}
        looks_up = name in cuda_operators.LOOK_UPS
        read = {id(x): x for x in (ours[1:] if looks_up or name in ASSIGNMENTS else ours)}
        moved = sum(x.nbytes for x in read.values())
        moved += sum(
            x.nbytes for x in read.values() if name in ASSIGNMENTS and x.dtype not in (torch.int64, torch.bool)
        )
        moved += sum(x.nbytes for x in written.values()) * (1 + looks_up) * (name not in ASSIGNMENTS)
        with self.lock:
            self.launches[stream_name(), name] += 1
            self.bytes[stream_name()] += moved

    def _count_wait(self, func, name, args, kwargs, tensors, ours, target):
        if name in cuda_operators.WAITS or f"{name}.{func._schema.overload_name}" in cuda_operators.WAITS:
            self.wait(name)
        elif name == "aten::_to_copy" and target is not None and tensors:
            self._count_copy(self.cuda if ours else CPU, target, tensors[0], kwargs.get("non_blocking"), None)
        elif name == "aten::copy_" and len(ours) == 1 and len(tensors) == 2:
            to, source = tensors
            no_wait = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            self._count_copy(source.device, to.device, source, no_wait, to)
        elif name in ASSIGNMENTS or name == "aten::index":
            self._count_indices(name, args, [i for i in args[1] if i is not None])

    def _count_copy(self, source, target, values, no_wait, to):
        """A copy between devices waits unless `no_wait` is asked for and the memory of the host is pinned."""
        if source.type == target.type:
            return
        host = values if target.type == "cuda" else to  # Tensor.to makes memory that is not pinned
        if not no_wait or host is None or not is_pinned(host):
            how = "that is not pinned" if no_wait else "that blocks"
            self.wait(f"copy to {target.type} {how}")

    def _count_indices(self, name, args, indices):
        if any(i.dtype in cuda_operators.MASKS for i in indices):
            is_fill = name != "aten::index" and args[2].numel() == 1 and len(indices) == 1  # it becomes masked_fill
            if not is_fill:
                self.wait(f"{name} by a mask")
        elif not all(isinstance(i, OnCuda) for i in indices):
            self.wait(f"{name} by an index on the host")

    def wait(self, what):
        """Write down that the host waits."""
        with self.lock:
            self.waits[stream_name(), what, where()] += 1


def _refuse(func, name, tensors, ours, args):
    """Raise what CUDA would."""
    others = [t for t in tensors if not isinstance(t, OnCuda)]
    if ours and others and name not in cuda_operators.TWO_DEVICES:
        scalars = all(t.dim() == 0 for t in others)
        if not scalars or not (torch.Tag.pointwise in func.tags or name.startswith(cuda_operators.SCALARS_FROM_HOST)):
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu!")
    if name in ASSIGNMENTS | {"aten::index"} and not isinstance(args[0], OnCuda):
        raise RuntimeError(f"{name}: indices should be on the same device as the indexed tensor (cpu)")
    if name.startswith("aten::_fused_"):
        for same in zip(*(a for a in args[:4] if isinstance(a, list) and len(a) == len(args[0])), strict=True):
            if len({t.stride() for t in same if t.shape == same[0].shape}) > 1:
                raise RuntimeError(f"{name}: params, grads and moments must have same dtype, device and layout")
    if ours and not has_cuda_kernel(func):
        raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend")


def _compute(func, name, args, kwargs):
    if name == "aten::cudnn_batch_norm":
        x, w, b, mean, var, training, momentum, eps = args
        return *aten.native_batch_norm(x, w, b, mean, var, training, momentum, eps), torch.empty(0, dtype=torch.uint8)
    if name == "aten::cudnn_batch_norm_backward":
        x, g, w, mean, var, saved_mean, saved_var, eps, _ = args
        moments = mean, var, saved_mean, saved_var
        return aten.native_batch_norm_backward(g, x, w, *moments, True, eps, [True, True, True])
    try:
        return func(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as e:  # a kernel of the CPU that does not know half precision
        half = next((t.dtype for t in tensors_in((args, kwargs)) if t.dtype in HALVES), None)
        if "not implemented for" not in str(e) or half is None or func._schema.is_mutable:
            raise
        args, kwargs = map_tensors(lambda t: t.float() if t.dtype in HALVES else t, (args, kwargs))
        out = func(*args, **kwargs)
        return map_tensors(lambda t: t.to(half) if t.dtype == torch.float32 else t, out)


def where():
    """file:line of the innermost frame of the project, and of a library that it called, torch aside."""
    frame, library, fallback = sys._getframe(2), None, "?"
    while frame:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if file.startswith(ROOMS):
            project = f"{Path(file).relative_to(ROOT)}:{line}"
            return f"{project} > {library}" if library else project
        if library is None and "site-packages" in file and "/torch/" not in file:
            library = f"{file.rpartition('site-packages/')[2]}:{line}"
        if fallback == "?" and file.startswith(str(ROOT)) and file != __file__ and "site-packages" not in file:
            fallback = f"{Path(file).relative_to(ROOT)}:{line}"
        frame = frame.f_back
    return library or fallback


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _device.call(func, args, kwargs or {})


def _enter_thread(stack):
    """A mode belongs to a thread, so each thread that computes on the device enters it."""
    if not any(isinstance(m, _Mode) for m in _get_current_dispatch_mode_stack()):
        stack.enter_context(_Mode())
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)


class Stream:
    """torch.cuda.Stream: it orders nothing. waited_for: the streams that it was told to wait for."""

    device = property(lambda self: _device.cuda)

    def __init__(self, device=None, priority=0, **_):
        self.waited_for = []
        if device is not None:
            _device.refuse_another(device)

    def record_event(self, event=None):
        event = event or Event()
        event.stream = self
        return event

    def wait_event(self, event):
        self.waited_for.append(event.stream)

    def wait_stream(self, stream):
        self.waited_for.append(stream)

    def synchronize(self):
        _device.wait("stream.synchronize")


class Event:
    """torch.cuda.Event: it is over as soon as it is recorded."""

    stream = None

    def __init__(self, *_, **__):
        pass

    def record(self, stream=None):
        self.stream = stream or current_stream()

    def synchronize(self):
        _device.wait("event.synchronize")

    def query(self):
        return True


_local = threading.local()
_default = Stream()


def current_stream(device=None):
    if device is not None:
        _device.refuse_another(device)
    return getattr(_local, "stream", _default)


def stream_name():
    return "training" if current_stream() is _default else "side"


@contextlib.contextmanager
def on_stream(stream):
    if stream is None:
        yield
        return
    before, _local.stream = current_stream(), stream
    with contextlib.ExitStack() as stack:
        _enter_thread(stack)
        try:
            yield
        finally:
            _local.stream = before


def record_stream(self, stream):
    assert isinstance(self, OnCuda), "record_stream of a tensor on the host"
    assert isinstance(stream, Stream)


def pin_memory(self, *_):
    if is_pinned(self):  # torch returns what is pinned already: threads may still write into it
        return self
    out = self.clone()
    out._pinned = True
    return out


def is_pinned(self, *_):
    return getattr(self, "_pinned", False) or (self._base is not None and getattr(self._base, "_pinned", False))


_tolist = torch.Tensor.tolist


def tolist(self):
    return _tolist(self.cpu() if isinstance(self, OnCuda) else self)


def _stubs():
    """Names of torch.cuda and what stands for them."""
    name = "a pretended CUDA device"
    properties = types.SimpleNamespace(name=name, total_memory=80 * 2**30, major=9, minor=0, multi_processor_count=132)
    nothing = dict.fromkeys(("_lazy_init", "empty_cache", "reset_peak_memory_stats", "manual_seed_all",
                             "manual_seed"), lambda *_: None)  # fmt: skip
    return nothing | {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: _device.cuda.index + 1,
        "current_device": lambda: _device.current, "set_device": lambda device: _device.set_current(device),
        "device": lambda *_: contextlib.nullcontext(),
        "mem_get_info": lambda *_: (70 * 2**30, 80 * 2**30), "get_device_name": lambda *_: name,
        "get_device_capability": lambda *_: (9, 0), "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: True, "synchronize": lambda *_: _device.wait("torch.cuda.synchronize"),
        "Stream": Stream, "Event": Event, "current_stream": current_stream, "stream": on_stream,
        "max_memory_allocated": lambda *_: 0, "memory_allocated": lambda *_: 0,
    }  # fmt: skip


@contextlib.contextmanager
def pretended_cuda(index=0):
    """The device, for this thread and for those that enter `torch.cuda.stream`; see the docstring of the module.

    index: its number. Devices of lower numbers belong to other processes: what is asked for there is refused. Without a
    number "cuda" is cuda:0, whatever `torch.cuda.set_device` was told: torch asks a driver that is not here.
    """
    global _device
    _device = Device(index)
    foreach = [torch.Tensor, torch.nn.Parameter, OnCuda]
    torch._C._ensureCUDADeviceGuardSet()
    patches = [(torch.cuda, name, stub) for name, stub in _stubs().items()]
    patches += [(torch.Tensor, f.__name__, f) for f in (backward, record_stream, pin_memory, is_pinned, tolist)]
    patches += [(sys.modules["torch.optim.optimizer"], "_foreach_supported_types", foreach)]
    patches += [(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))  # Lightning sets CUDA_DEVICE_ORDER
        for owner, name, stub in patches:
            stack.enter_context(mock.patch.object(owner, name, stub))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        _enter_thread(stack)
        yield _device
