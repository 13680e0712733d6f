"""What this machine has, and what of it the run uses."""

import ctypes
import os
import sys
from argparse import Namespace
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError


@dataclass(frozen=True)
class Hardware:
    """accelerator and devices as Lightning takes them; processes over all nodes."""

    accelerator: str
    devices: int | list[int]
    nodes: int
    processes: int


def choose_hardware(args: Namespace) -> Hardware:
    """CUDA, Apple's GPU or the CPU; under torchrun or srun as many processes as they started."""
    accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if args.gpus is not None:
        _check_gpus(args.gpus)
    nodes, started = _launched(getattr(args, "num_nodes", 1))
    if started and args.gpus and len(args.gpus) != started:
        raise UserError(
            f"--gpus names {len(args.gpus)} devices but the launcher started {started} processes here; make them equal"
        )
    here = len(args.gpus) if args.gpus else started or (torch.cuda.device_count() if accelerator == "cuda" else 1)
    if accelerator == "cuda" and here > torch.cuda.device_count():
        raise UserError(f"{here} processes were started on this machine, which has {torch.cuda.device_count()} GPUs")
    return Hardware(accelerator, args.gpus or here, nodes, here * nodes)


def spread(args: Namespace, argv: list[str]) -> None:
    """Start this program again as one process per CUDA device where it is alone and there are several to use."""
    hardware = choose_hardware(args)
    if hardware.accelerator == "cuda" and hardware.processes > 1 and "LOCAL_RANK" not in os.environ:
        many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(hardware.processes)]
        os.execv(sys.executable, [sys.executable, *many, sys.argv[0], *argv])


def choose_device(args: Namespace) -> torch.device:
    """The device of this process: of several that torchrun started, each takes its own."""
    accelerator = choose_hardware(args).accelerator
    local = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device(accelerator, (args.gpus[local] if args.gpus else local) if accelerator == "cuda" else 0)


def _check_gpus(gpus: list[int]) -> None:
    wanted = " ".join(map(str, gpus))
    if not torch.cuda.is_available():
        raise UserError(f"--gpus {wanted} asks for CUDA devices but this machine has none; leave --gpus out")
    there = torch.cuda.device_count()
    if max(gpus) >= there or len(set(gpus)) < len(gpus):
        raise UserError(f"--gpus {wanted}: this machine has devices 0 to {there - 1}, each to be named once")


def _launched(nodes: int) -> tuple[int, int]:
    """(nodes, processes on this one) as torchrun or srun says; 0 processes where neither started us."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return int(os.environ["WORLD_SIZE"]) // here, here
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", nodes))
        return nodes, int(os.environ["SLURM_NTASKS"]) // nodes
    return nodes, 0


def choose_precision(wanted: str | None, accelerator: str) -> tuple[str, str]:
    """(precision, reason): bf16 where it is computed in hardware, never where it is emulated."""
    if wanted == "16-mixed" and accelerator == "cpu":
        raise UserError("--precision 16-mixed needs a GPU; choose bf16-mixed or 32 on this machine")
    if wanted:
        return wanted, "as given"
    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "this GPU computes it") if native else ("32", "this GPU does not compute bf16")
    if accelerator == "cpu" and _cpu_multiplies_bf16():
        return "bf16-mixed", "this CPU computes it"
    return "32", f"no bf16 in this {accelerator}"


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 dot products (AVX-512) or tiles (AMX)."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.11
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def host_memory() -> int:
    """Bytes of memory of this machine for one of its training processes."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        total = 8 * 2**30
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory per arena instead of handing each temporary back to the system.

    What was handed back is cleared by the system, page by page, when it is next used: on CPU that took four fifths of
    the time of operations on a view of 224 pixels.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        ctypes.CDLL(None).mallopt(mmap_threshold, 32 * 2**20)
        ctypes.CDLL(None).mallopt(trim_threshold, 256 * 2**20)


def in_large_pages(x: Tensor) -> Tensor:
    """The new, empty tensor; asks Linux for pages of 2 MiB, which are cleared many times faster than small ones."""
    page, huge = 2**21, 14  # sys/mman.h: MADV_HUGEPAGE
    start = -(-x.data_ptr() // page) * page
    length = (x.data_ptr() + x.nbytes - start) // page * page
    if sys.platform == "linux" and length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), huge)
    return x


def peak_memory(accelerator: str) -> int:
    """Bytes at the peak: allocated by torch on a GPU, resident in the process on CPU."""
    if accelerator == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
