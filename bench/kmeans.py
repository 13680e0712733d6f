"""Seconds of an iteration of k-means by torch and by faiss, same rows, start and threads.

The seconds of an iteration are those that one more adds to a call: (seconds of 3 - seconds of 1) / 2. The
features are a mixture of K Gaussians that overlap, cut off at 0: the seconds of an iteration depend on the sizes.
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from bench.sides import Settings, Work
from evaluation.kmeans import BACKENDS
from utils import kmeans as implementation


def features(n: int, d: int, k: int) -> Tensor:
    """(n, d) random rows in k overlapping clusters."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(k, d, generator=g)
    return (0.5 * centres[torch.randint(k, (n,), generator=g)] + torch.randn(n, d, generator=g)).relu()


def seconds(run: Any, *args: Any) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


def kmeans(settings: Settings, backend: str, n: int, d: int, k: int) -> Work:
    """k clusters of (n, d) rows by "torch" or "faiss"."""
    x = features(n, d, k)
    facts = implementation._checked(x, k, 1, implementation.CPU)
    begin = x[_start(x, k, "subset", facts)]
    run = BACKENDS[backend]

    def iteration() -> float:
        """Median seconds of as many iterations as fit into a round."""
        taken: list[float] = []
        start = time.perf_counter()
        while not taken or time.perf_counter() - start < settings.seconds:
            one, three = (seconds(run, begin, x, facts, times, "") for times in (1, 3))
            taken.append((three - one) / 2)
        return statistics.median(taken)

    def measured() -> dict[str, Any]:
        starts = {start: seconds(_start, x, k, start, facts) for start in implementation.STARTS}
        objective = implementation._run(begin, x, facts, 10, run).objective[-1]
        return {"objective_after_10": objective} | ({"seconds_of_a_start": starts} if backend == "torch" else {})

    return Work(iteration, measured)


def _start(x: Tensor, k: int, start: str, facts: implementation.RowFacts) -> Tensor:
    return implementation._start(x, k, start, facts, torch.Generator().manual_seed(0), implementation.CPU)
