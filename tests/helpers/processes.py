"""Groups of gloo processes on this machine."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _serve(rank: int, world: int, store: str, pipe) -> None:
    """A gloo process that does what it is sent until it is sent nothing."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while task := pipe.recv():
        function, args = task
        try:
            pipe.send((True, function(rank, world, *args)))
        except Exception as e:  # whatever it is, the test must fail with it
            pipe.send((False, repr(e)))
    dist.destroy_process_group()


class Ranks:
    """`world` gloo processes, started once: importing torch takes them longer than any test."""

    def __init__(self, world: int, folder: str):
        context = mp.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            local_end, child_end = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, f"{folder}/{world}", child_end), daemon=True)
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
