"""Hardware of this machine: accelerator, precision, memory and cores."""

import os
import sys

import torch

from utils.distributed import launched_local_rank
from utils.errors import UserError
from utils.plan import HardwareConfig

TORCHRUN = "TORCHELASTIC_RUN_ID"  # a variable of the processes that torchrun starts
THREADS = "OMP_NUM_THREADS"


def choose_hardware(accelerator: str, gpus: list[int] | None, num_nodes: int = 1) -> HardwareConfig:
    """CUDA, Apple's GPU or the CPU; under torchrun or srun as many processes as the launcher started.

    accelerator: "auto" or one of "cpu", "cuda", "mps". gpus: CUDA device ids, None for all.
    """
    accelerator = _choose_accelerator(accelerator)
    if gpus is not None:
        _check_gpus(gpus)
    nodes, started = _launched(num_nodes)
    if started and gpus and len(gpus) != started:
        raise UserError(
            f"--gpus names {len(gpus)} devices but the launcher started {started} processes here; make them equal"
        )
    local = len(gpus) if gpus else started or (torch.cuda.device_count() if accelerator == "cuda" else 1)
    if accelerator == "cuda" and local > torch.cuda.device_count():
        raise UserError(f"{local} processes were started on this machine, which has {torch.cuda.device_count()} GPUs")
    return HardwareConfig(accelerator, gpus or local, nodes, local * nodes)


def _choose_accelerator(requested: str) -> str:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        return next(name for name, present in available.items() if present)
    if not available[requested]:
        present = ", ".join(name for name, there in available.items() if there)
        raise UserError(f"--accelerator {requested} is not available here; choose auto or one of {present}")
    return requested


def start_processes(hardware: HardwareConfig, argv: list[str]) -> None:
    """Start this program again as one process per CUDA device, with torchrun, where no launcher has started it.

    torchrun gives each of several processes one thread. Here each takes its share of the cores instead, for the work of
    evaluations on the CPU (k-means, L-BFGS, pictures).
    """
    _, started = _launched(hardware.nodes)
    threads = str(max(1, usable_cores() // (started or hardware.processes)))
    if hardware.accelerator == "cuda" and hardware.processes > 1 and not started:
        os.environ.setdefault(THREADS, threads)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(hardware.processes)]
        os.execv(sys.executable, [sys.executable, *torchrun, sys.argv[0], *argv])
    if TORCHRUN in os.environ and started > 1 and os.environ.get(THREADS) == "1":
        torch.set_num_threads(int(threads))


def local_device(hardware: HardwareConfig) -> torch.device:
    """The device of this process: of several on one machine, each takes its own."""
    local_rank = launched_local_rank()
    if hardware.accelerator != "cuda":
        return torch.device(hardware.accelerator, 0)
    return torch.device("cuda", hardware.devices[local_rank] if isinstance(hardware.devices, list) else local_rank)


def _check_gpus(gpus: list[int]) -> None:
    requested = " ".join(map(str, gpus))
    if not torch.cuda.is_available():
        raise UserError(f"--gpus {requested}: no CUDA device is available; remove --gpus")
    available = torch.cuda.device_count()
    if max(gpus) >= available or len(set(gpus)) < len(gpus):
        raise UserError(f"--gpus {requested}: this machine has GPUs 0 to {available - 1}; name each once")


def _launched(nodes: int) -> tuple[int, int]:
    """(nodes, processes on this one) as torchrun or srun set them; 0 processes where no launcher started this one."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    if TORCHRUN in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return int(os.environ["WORLD_SIZE"]) // local, local
    if SLURMEnvironment.detect():
        nodes, tasks = int(os.environ.get("SLURM_NNODES", nodes)), int(os.environ["SLURM_NTASKS"])
        if tasks % nodes or (tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ):
            raise UserError(
                f"SLURM has {tasks} tasks on {nodes} machines, which need equally many; give sbatch or srun "
                f"--ntasks-per-node instead of --ntasks"
            )
        return nodes, tasks // nodes
    if nodes > 1 and "NODE_RANK" not in os.environ:  # Lightning's variable, for processes that are started by hand
        raise UserError(
            f"--num_nodes {nodes} needs a launcher that starts the command on each machine: torchrun --nnodes {nodes}, "
            f"or srun in a job of SLURM"
        )
    return nodes, 0


def choose_precision(requested: str | None, accelerator: str) -> tuple[str, str]:
    """(precision, reason): bf16 where it is computed in hardware, never where it is emulated."""
    if requested == "16-mixed" and accelerator == "cpu":
        raise UserError("--precision 16-mixed needs a GPU; choose bf16-mixed or 32 on this machine")
    if requested:
        return requested, "from the flag"
    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "GPU has native bf16") if native else ("32", "GPU has no native bf16")
    if accelerator == "cpu" and _cpu_multiplies_bf16():
        return "bf16-mixed", "CPU has native bf16"
    return "32", f"{accelerator} has no native bf16"


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 dot products (AVX-512) or tiles (AMX)."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.11
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 8 * 2**30


def host_memory() -> int:
    """Bytes of memory of this machine for one of its training processes."""
    return machine_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
