"""Processes that are forked from one that has imported the application, and groups of them with gloo."""

import importlib
import multiprocessing
import os
from multiprocessing import forkserver
from unittest import mock

import torch
import torch.distributed as dist

from methods import METHODS

CONTEXT = multiprocessing.get_context("forkserver")


def start_forkserver() -> None:
    """Start the process from which others are forked: importing takes it longer than any test, and them no time."""
    CONTEXT.set_forkserver_preload(["tests.helpers.preload"])
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # a library that starts threads when imported starts none
        forkserver.ensure_running()


def _serve(rank: int, world: int, store: str, modules: set[str], pipe) -> None:
    """A gloo process that does what it is sent until it is sent nothing. modules: to import before."""
    torch.set_num_threads(1)
    for module in modules:
        importlib.import_module(module)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while task := pipe.recv():
        function, args = task
        try:
            pipe.send((True, function(rank, world, *args)))
        except Exception as e:  # whatever it is, the test must fail with it
            pipe.send((False, repr(e)))
    dist.destroy_process_group()


class Ranks:
    """`world` gloo processes, started once."""

    def __init__(self, world: int, folder: str):
        start_forkserver()
        self.pipes, self.processes = [], []
        modules = {method.__module__ for method in METHODS.values()}  # a test may have added one that is elsewhere
        for rank in range(world):
            local_end, child_end = CONTEXT.Pipe()
            process = CONTEXT.Process(
                target=_serve, args=(rank, world, f"{folder}/{world}", modules, child_end), daemon=True
            )
            process.start()
            self.pipes.append(local_end)
            self.processes.append(process)

    def run(self, function, *args) -> list:
        """function(rank, world, *args) on every process -> what each returned."""
        for pipe in self.pipes:
            pipe.send((function, args))
        results = [pipe.recv() for pipe in self.pipes]
        assert all(fine for fine, _ in results), [value for fine, value in results if not fine]
        return [value for _, value in results]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)
