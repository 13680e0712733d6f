"""A loader whose batches are made by threads, a few of them before they are asked for."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.allocator import in_large_pages
from data.images import Images
from data.pipelines.base import BatchDataset, BatchKey, ResumableLoader, identity_collate
from utils.batch import Batch

AHEAD = 2  # batches in the making beside the one that is asked for
# Images per task: enough to draw their parameters at once, few enough to share a batch among the threads.
LEAST, PIXELS = 8, 2**19

Submit = Callable[..., Future]


class ThreadedDataset(BatchDataset):
    """The work of the threads: `fill` makes the views of some images of a batch, in place."""

    def __init__(self, images: Images, seed: int = 0, pinned: bool = False):
        super().__init__(images, seed)
        self.pinned = pinned

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        """Side and type of every view."""
        raise NotImplementedError

    def fill(self, views: list[Tensor], epoch: int, index: NDArray) -> None:
        """Write the views of the images `index` (N,) into `views`, one (N, 3, size, size) for each of `shapes`."""
        raise NotImplementedError

    def start(self, address: BatchKey, submit: Submit) -> tuple[Batch, list[Future]]:
        """A batch that is complete when all the futures are."""
        epoch, index = address
        rows, where = np.array(index), torch.tensor(index)
        views = [torch.empty(len(rows), 3, s, s, dtype=d, pin_memory=self.pinned) for s, d in self.shapes()]
        views = views if self.pinned else [in_large_pages(view) for view in views]
        piece = max(LEAST, PIXELS // sum(size**2 for size, _ in self.shapes()))
        cuts = [slice(at, at + piece) for at in range(0, len(rows), piece)]
        jobs = [submit(self.fill, [v[cut] for v in views], epoch, rows[cut]) for cut in cuts]
        return Batch(where, views, self.images.labels[where]), jobs


class ThreadPrefetchLoader(ResumableLoader):
    """Batches in the order of their addresses; the error of a thread is raised where its batch is asked for.

    threads: 0 makes each batch in the caller, when it is asked for. However the iteration ends, its threads end too.
    """

    def __init__(self, work: ThreadedDataset, order: Any, threads: int):
        super().__init__(work, batch_sampler=order, collate_fn=identity_collate, num_workers=0)
        self.work, self.order, self.threads = work, order, threads

    def batches(self) -> Iterator[Batch]:
        waiting: deque[tuple[Batch, list[Future]]] = deque()
        ahead = AHEAD if self.threads else 0
        with _pool(self.threads) as submit:
            for address in self.order:
                waiting.append(self.work.start(address, submit))
                if len(waiting) > ahead:
                    yield _complete(*waiting.popleft())
            while waiting:
                yield _complete(*waiting.popleft())


def _complete(batch: Batch, jobs: list[Future]) -> Batch:
    for job in jobs:
        job.result()
    return batch


@contextmanager
def _pool(threads: int) -> Iterator[Submit]:
    """`submit` of a pool in which every thread computes by itself; of none, where there are to be no threads."""
    if not threads:
        yield _at_once
        return
    inner, ready = torch.get_num_threads(), Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # torch gives a thread the number of the process when it first asks: let that be now
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "views", begin)
    try:
        for _ in range(threads):
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(inner)  # a part of this number belongs to the process, and the threads have changed it
        yield pool.submit
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _at_once(work: Callable, *args: Any) -> Future:
    """`work` done in the caller, with one thread as in a pool: sums in another order would have other last bits."""
    inner = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work(*args)
    finally:
        torch.set_num_threads(inner)
    done: Future = Future()
    done.set_result(None)
    return done
