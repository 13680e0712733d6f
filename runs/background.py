"""Writing beside the training thread: a copy of the state on the CPU, and one thread that writes it."""

import copy
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

Job = Callable[[], None]
_writing: dict[threading.Thread, threading.Event] = {}  # the threads that write now; what each sets at its end


def _wait_before_fork() -> None:
    """Let no process be forked while a thread writes: the child would wait forever for a lock that the thread holds."""
    for thread, finished in list(_writing.items()):
        if thread is not threading.current_thread():
            finished.wait()


os.register_at_fork(before=_wait_before_fork)


class BackgroundWriter:
    """One thread that does the jobs of a save in their order; there are never two.

    failure: why the newest save failed, None for a save that is under way or done. The jobs that are left of a failed
    save are kept, with the memory that they need, until `retry` or the next save.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._jobs: deque[Job] = deque()
        # Not Thread.join: where a signal ends a join, Python 3.11 takes the thread for ended (CPython 90882).
        self._finished = threading.Event()
        self._finished.set()

    @property
    def is_idle(self) -> bool:
        return self._finished.is_set()

    def wait(self) -> str | None:
        """Wait for the end of the save that is under way; why it failed, or None. A signal may end the wait alone."""
        self._finished.wait()
        return self.failure

    def clear(self) -> None:
        """Wait for the end of the save that is under way, and forget it."""
        self.wait()
        self._jobs.clear()
        self.failure = None

    def start(self, *jobs: Job) -> None:
        """Begin a save; the one before must be cleared. A signal that ends the start leaves a save that failed."""
        self._jobs.extend(jobs)
        begun = threading.Lock()  # who takes it does the jobs, or says that nobody does
        thread = threading.Thread(target=self._run_if_first, args=(begun,), name="checkpoint writer")
        try:
            _writing[thread] = self._finished
            self._finished.clear()
            thread.start()
        except BaseException as error:
            if not begun.acquire(blocking=False):  # the thread has begun all the same
                raise
            _writing.pop(thread, None)
            if isinstance(error, RuntimeError):  # the system has no thread left: saving takes longer, and does not fail
                self._run()
                return
            self.failure = "the save was interrupted before it began"
            self._finished.set()
            raise

    def retry(self) -> str | None:
        """Do what is left of a save that failed once more, in this thread; why that failed, or None."""
        if self.wait():
            self._run()
        return self.failure

    def _run_if_first(self, begun: threading.Lock) -> None:
        if begun.acquire(blocking=False):
            self._run()

    def _run(self) -> None:
        try:
            while self._jobs:
                self._jobs[0]()
                self._jobs.popleft()
            self.failure = None
        except UserError as e:
            self.failure = str(e)
        except Exception as e:  # a defect, but the training is worth more than this save
            self.failure = f"cannot save ({type(e).__name__}: {next(iter(str(e).splitlines()), '')})"
        finally:
            _writing.pop(threading.current_thread(), None)
            self._finished.set()


def copy_to_cpu(state: Any) -> Any:
    """Copy nested dictionaries, lists and tuples; every tensor gets memory of its own on the CPU.

    The training thread changes weights and moments in place while the copy is written. From CUDA the copies are queued
    into pinned memory, and there is one wait for all of them; they are contiguous, whatever the layout of weights is.
    """
    copied = _copy(state)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copied


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_cuda:
            pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            return pinned.copy_(value, non_blocking=True)
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the attributes of a state_dict
        copied.update((key, _copy(v)) for key, v in value.items())
        return copied
    if type(value) in (list, tuple):
        return type(value)(map(_copy, value))
    return copy.deepcopy(value)
