"""Seconds of an iteration of k-means by torch and by faiss, same rows, start and threads.

The time of an iteration is the time that one more adds to a call: (seconds of 3 - seconds of 1) / 2. The features are a
mixture of K Gaussians that overlap, cut off at 0: the time depends on the sizes alone.
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from bench.sides import Settings, Work
from evaluation import kmeans as subject


def features(n: int, d: int, k: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(k, d, generator=g)
    return (0.5 * centres[torch.randint(k, (n,), generator=g)] + torch.randn(n, d, generator=g)).relu()


def seconds(run: Any, *args: Any) -> float:
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


def kmeans(settings: Settings, backend: str, n: int, d: int, k: int) -> Work:
    """k clusters of (n, d) rows by "torch" or "faiss"."""
    x = features(n, d, k)
    prints = subject._checked(x, k, 1, subject.CPU)
    begin = x[_start(x, k, "subset", prints)]
    run = subject.BACKENDS[backend]

    def iteration() -> float:
        """The median of the iterations that fit into a round."""
        taken: list[float] = []
        start = time.perf_counter()
        while not taken or time.perf_counter() - start < settings.seconds:
            one, three = (seconds(run, begin, x, prints, times, "") for times in (1, 3))
            taken.append((three - one) / 2)
        return statistics.median(taken)

    def facts() -> dict[str, Any]:
        starts = {start: seconds(_start, x, k, start, prints) for start in subject.STARTS}
        objective = subject._from(begin, x, prints, 10, backend).objective[-1]
        return {"objective_after_10": objective} | ({"seconds_of_a_start": starts} if backend == "torch" else {})

    return Work(iteration, facts)


def _start(x: Tensor, k: int, start: str, prints: Tensor) -> Tensor:
    return subject._start(x, k, start, prints, torch.Generator().manual_seed(0), subject.CPU)
