"""A disk that is full: by the limit of the operating system on the size of a file, or by an error in its place."""

import contextlib
import errno
import resource
from collections.abc import Iterator
from typing import Any, NoReturn


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: the kernel writes what fits, then says EFBIG.

    Python ignores the signal SIGXFSZ that would come too.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def full_disk(*args: Any, **kwargs: Any) -> NoReturn:
    """Stand in for a function that writes."""
    raise OSError(errno.ENOSPC, "No space left on device")
