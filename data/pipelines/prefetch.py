"""A loader whose batches are made by threads, a few of them before they are asked for."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.allocator import in_large_pages
from data.pipelines.loaders import BatchDataset, BatchKey, BatchKeys, ResumableLoader, UnfinishedBatch
from data.sampler import ViewParams

PREFETCH = 2  # batches in the making beside the one that is asked for
# Images per task: enough to draw their parameters at once, few enough to share a batch among the threads.
MIN_IMAGES_PER_TASK, PIXELS_PER_TASK = 8, 2**19

Submit = Callable[..., "Future[list[ViewParams]]"]


class ThreadedDataset(BatchDataset):
    """A data set whose views are rendered by threads, in place: `render_into` makes those of some images of a batch."""

    def shapes(self) -> list[tuple[int, torch.dtype]]:
        """Side and type of every view."""
        raise NotImplementedError

    def render_into(self, views: list[Tensor], epoch: int, index: NDArray) -> list[ViewParams]:
        """Write the views of the images `index` (N,) into `views`, one (N, 3, size, size) for each of `shapes`.

        Returns the parameters of the colour operations that are left to `finalize_batch`, one for each view, or none.
        """
        raise NotImplementedError

    def submit_batch(
        self, key: BatchKey, submit: Submit, pinned: bool
    ) -> tuple[UnfinishedBatch, list["Future[list[ViewParams]]"]]:
        """A batch that is complete when all the futures are; their results are its parameters, part by part.

        pinned: in memory from which a GPU copies while the host goes on.
        """
        epoch, index = key
        rows, positions = np.array(index), torch.tensor(index)
        views = [torch.empty(len(rows), 3, s, s, dtype=d, pin_memory=pinned) for s, d in self.shapes()]
        views = views if pinned else [in_large_pages(view) for view in views]
        step = max(MIN_IMAGES_PER_TASK, PIXELS_PER_TASK // sum(size**2 for size, _ in self.shapes()))
        parts = [slice(first, first + step) for first in range(0, len(rows), step)]
        futures = [submit(self.render_into, [view[part] for view in views], epoch, rows[part]) for part in parts]
        batch = UnfinishedBatch(positions, views, self.images.labels[positions], [])
        return batch.pin_memory() if pinned else batch, futures


class ThreadPrefetchLoader(ResumableLoader):
    """Batches in the order of their keys; the error of a thread is raised where its batch is asked for.

    threads: 0 makes each batch in the caller, when it is asked for. However the iteration ends, its threads end too.
    device: to which the batches go from here.
    """

    def __init__(self, dataset: ThreadedDataset, keys: BatchKeys, threads: int, device: torch.device):
        super().__init__(dataset, keys)
        self.views, self.threads, self.pinned = dataset, threads, device.type == "cuda"

    def batches(self) -> Iterator[UnfinishedBatch]:
        waiting: deque[tuple[UnfinishedBatch, list[Future[list[ViewParams]]]]] = deque()
        ahead = PREFETCH if self.threads else 0
        with thread_pool(self.threads) as submit:
            for key in self.keys:
                waiting.append(self.views.submit_batch(key, submit, self.pinned))
                if len(waiting) > ahead:
                    yield _complete(*waiting.popleft())
            while waiting:
                yield _complete(*waiting.popleft())


def _complete(batch: UnfinishedBatch, futures: list["Future[list[ViewParams]]"]) -> UnfinishedBatch:
    parts = [future.result() for future in futures]
    return batch._replace(color_params=[ViewParams.concatenate(view) for view in zip(*parts, strict=True)])


@contextmanager
def thread_pool(threads: int) -> Iterator[Submit]:
    """`submit` of a pool whose threads each let torch compute on one core; with 0 threads the caller computes.

    torch's number of threads is a setting of the process: it is what it was before as soon as the threads are started.
    """
    if not threads:
        yield _run_in_caller
        return
    number, ready = torch.get_num_threads(), Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # torch gives a thread the number of the process when it first asks: let that be now
        torch.set_num_threads(1)
        with suppress(BrokenBarrierError):
            ready.wait()

    pool = ThreadPoolExecutor(threads, "views", begin)
    try:
        for _ in range(threads):
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(number)  # a part of this number belongs to the process, and the threads have changed it
        yield pool.submit
    finally:
        ready.abort()  # where a thread could not start, the others wait for it
        pool.shutdown(wait=True, cancel_futures=True)


def _run_in_caller(work: Callable[..., Any], *args: Any) -> Future:
    """`work` done in the caller, with one thread as in a pool: sums in another order would have other last bits."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    done: Future = Future()
    try:
        done.set_result(work(*args))
    finally:
        torch.set_num_threads(number)
    return done
