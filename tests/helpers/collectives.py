"""Collectives that a block of code calls, counted as torch hands them to the backend."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Collective(NamedTuple):
    """One call. bytes: of the whole tensor, the gathered one or the one before the scattering."""

    name: str
    bytes: int

    def sent(self, world: int) -> float:
        """Bytes that a rank sends in a ring; an all-reduce is a reduce-scatter and an all-gather."""
        rounds = 2 if self.name == "all_reduce" else 1
        return rounds * self.bytes * (world - 1) / world


class CountCollectives(TorchDispatchMode):
    """Collects the collectives of the block in `calls`, those of its backward passes too."""

    NAMES = {"allreduce_": "all_reduce", "_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter"}

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function.overloadpacket.__name__
            tensors = [
                x for arg in args[:2] for x in (arg if isinstance(arg, list) else [arg]) if isinstance(x, Tensor)
            ]
            self.calls.append(Collective(self.NAMES.get(name, name), max(x.nbytes for x in tensors)))
        return function(*args, **(kwargs or {}))
