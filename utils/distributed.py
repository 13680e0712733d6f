"""Ranks and collectives: the only file that imports torch.distributed.

Every collective is the identity on one process and carries its gradient on several, so that a loss has no switch
for being distributed: a reduction without gradient gives the right loss and a gradient divided by the ranks.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# A rank may wait in a collective while another evaluates alone (k-means, pictures). A process that fails does not keep
# the others waiting: its connection tells (utils/peers.py).
TIME_LIMIT = timedelta(hours=12)
WAIT = 0.1  # seconds between two looks for the other ranks
INTERACTIVE = ("bash", "interactive")  # names of jobs of SLURM that Lightning too takes for a shell
_barriers = 0  # calls of barrier(): each has keys of its own in the store
COMMUNICATION = ("gloo", "NCCL", "c10d", "TCPStore", "Connection closed by peer", "Connection reset by peer")


class ProcessError(RuntimeError):
    """The error of another rank, on the ranks that have none. rank: whose it is. code: the exit status that it has."""

    def __init__(self, rank: int, reason: str, code: int):
        super().__init__(reason)
        self.rank, self.code = rank, code


def reason_of(error: BaseException) -> str:
    """The reason in one line, also where a worker process has passed its error on with a traceback in the message."""
    lines = str(error).strip().splitlines() or [""]
    if not hasattr(error, "code"):  # no error of this application: its type is a part of the reason
        return lines[-1] if "Traceback" in str(error) else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    return lines[-1].removeprefix("utils.errors.UserError: ")


def world_size() -> int:
    """Number of processes that train together; 1 before and without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def launched_rank() -> int:
    """The rank that the launcher gave this process, known before the process group is: who may write files."""
    return _launcher_variable("RANK", "SLURM_PROCID", "LOCAL_RANK", default=0)


def launched_size() -> int:
    """Number of processes that the launcher started, known before the process group is."""
    return _launcher_variable("WORLD_SIZE", "SLURM_NTASKS", default=1)


def _launcher_variable(*names: str, default: int) -> int:
    """The first of these variables that is set; those of SLURM only where srun started this process."""
    # In an interactive shell of SLURM they describe the shell, for each process that Lightning starts there.
    if os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
        names = tuple(name for name in names if not name.startswith("SLURM_"))
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def rank_zero_print(text: str) -> None:
    """Print on the first rank only; also before the process group is formed."""
    if launched_rank() == 0:
        print(text, flush=True)


def launched_local_rank() -> int:
    """The number that the launcher gave this process among those of its machine: which GPU it takes."""
    return _launcher_variable("LOCAL_RANK", "SLURM_LOCALID", default=0)


def init_process_group(device: torch.device, processes: int) -> None:
    """Form a group with the processes that torchrun or srun started beside this one, if there are several.

    device: of this process. It becomes torch's current one before the group forms: objects are exchanged through it,
    and two ranks that exchange through one GPU are refused by NCCL.
    """
    if max(processes, int(os.environ.get("WORLD_SIZE", "1"))) == 1 or dist.is_initialized():
        return
    if "RANK" not in os.environ:
        _export_slurm_variables()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, timeout=TIME_LIMIT)
    else:
        dist.init_process_group("gloo", timeout=TIME_LIMIT)


def _export_slurm_variables() -> None:
    """What torch reads from torchrun's variables, from those of SLURM. MASTER_ADDR and MASTER_PORT stay as they are."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)  # the first machine, and a port that the number of the job decides
    os.environ |= {
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "WORLD_SIZE": str(slurm.world_size()),
        "LOCAL_WORLD_SIZE": str(slurm.world_size() // int(os.environ.get("SLURM_NNODES", "1"))),
    }


def destroy_process_group() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for the other ranks as long as it takes; a collective would end at the time limit of the group.

    The first rank leaves last, since the store through which the others look for each other may be its own.
    """
    global _barriers
    if world_size() == 1:
        return
    _barriers += 1
    store, key = _store(), f"barrier/{_barriers}"
    store.set(f"{key}/{rank()}", "")
    _wait_for([f"{key}/{number}" for number in range(world_size())])
    if rank() == 0:
        _wait_for([f"{key}/{number}/left" for number in range(1, world_size())])
    else:
        store.set(f"{key}/{rank()}/left", "")


def _store() -> Any:
    """The store through which the ranks have found each other; torch has no public name for it."""
    return dist.distributed_c10d._get_default_store()


def _wait_for(keys: list[str]) -> None:
    while not _store().check(keys):
        time.sleep(WAIT)


def broadcast_str(text: str) -> str:
    """The first rank's text, on every rank."""
    box = [text]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def all_equal(text: str) -> bool:
    """Whether every rank brings the same text."""
    box = [text] * world_size()
    if world_size() > 1:
        dist.all_gather_object(box, text)
    return len(set(box)) == 1


def is_communication_error(error: BaseException) -> bool:
    """Whether a collective failed: most often since another rank ended, which is then the one to be named."""
    known = isinstance(error, RuntimeError) and any(word in str(error) for word in COMMUNICATION)
    return world_size() > 1 and not hasattr(error, "code") and (known or isinstance(error, dist.DistError))


def raise_together(error: Exception | None) -> None:
    """Raise on every rank when one has an error: its own, or a ProcessError; every rank must call.

    For work that each rank does alone before a collective, in which the others would wait for a rank that failed.
    """
    if error is not None and (world_size() == 1 or is_communication_error(error)):
        raise error  # nobody to agree with
    found: list[tuple[str, int] | None] = [None] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, None if error is None else (reason_of(error), getattr(error, "code", 1)))
    if error is not None:
        raise error
    for number, failed in enumerate(found):
        if failed is not None:
            raise ProcessError(number, *failed)


def run_on_first_rank(function: Callable[[], T]) -> T | None:
    """function() on the first rank, for which the others wait as long as it takes; every rank must call.

    The first rank gets the result, the others None; an error of the first rank is a ProcessError on the others.
    """
    result, error = None, None
    if rank() == 0:
        try:
            result = function()
        except Exception as e:
            error = e
    barrier()
    raise_together(error)
    return result


class _Sum(torch.autograd.Function):
    """All-reduce forward and of the gradient backward; a gradient that is equal on all ranks is summed without one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, equal_gradient: bool) -> Tensor:
        ctx.equal_gradient = equal_gradient
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.equal_gradient:
            return grad * world_size(), None
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad, None


class _Gather(torch.autograd.Function):
    """All-gather of several tensors as one; reduce-scatter of the gradient of each one that has a gradient."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        if len(tensors) == 1:
            return (_all_gather(tensors[0]),)
        flat = [x.reshape(1, -1).view(torch.uint8) for x in tensors]  # bytes: the types may differ
        gathered = _all_gather(torch.cat(flat, dim=1)).split([x.shape[1] for x in flat], dim=1)  # each (W, bytes)
        # Clones are aligned for their type; parts lie at any byte.
        parts = [part.clone(memory_format=torch.contiguous_format).view(-1) for part in gathered]
        return tuple(
            part.view(x.dtype).view(world_size() * len(x), *x.shape[1:]) for part, x in zip(parts, tensors, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(grads, ctx.needs_input_grad, strict=True)
        return tuple(_reduce_scatter(grad) if needed else None for grad, needed in wanted)


def _all_gather(x: Tensor) -> Tensor:
    """(N, ...) on each rank -> (W * N, ...) on every rank."""
    out = x.new_empty(world_size() * len(x), *x.shape[1:])
    # torch 2.14 renamed this function and the next one and warns of the old names.
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(out, x.contiguous())
    return out


def _reduce_scatter(x: Tensor) -> Tensor:
    """(W * N, ...) on every rank -> the sum over ranks of this rank's (N, ...)."""
    out = x.new_empty(len(x) // world_size(), *x.shape[1:])
    getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)(out, x.contiguous())
    return out


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of x over ranks, with gradient."""
    return x if world_size() == 1 else _Sum.apply(x, False)


def mean_over_ranks(x: Tensor, equal_gradient: bool = False) -> Tensor:
    """Average of x over ranks, with gradient.

    equal_gradient: whether the gradient of the result is the same on every rank, as that of a loss that all ranks
    compute from averages alone. It then needs no collective.
    """
    return x if world_size() == 1 else _Sum.apply(x, equal_gradient) / world_size()


def gather(x: Tensor) -> Tensor:
    """(N, ...) on each rank -> (W * N, ...) on every rank, in rank order, with gradient; N is the same on all ranks."""
    return gather_together(x)[0]


def gather_together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """`gather` of several tensors, of any types and lengths, in one collective."""
    if world_size() == 1:
        return tensors
    gathered: tuple[Tensor, ...] = _Gather.apply(*tensors)
    return gathered
