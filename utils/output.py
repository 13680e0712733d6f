"""Standard output and error that outlive their reader."""

import errno
import io
import os
import sys
from typing import Any


class LastingFile(io.FileIO):
    """A file descriptor whose output is dropped from the moment on at which its reader goes away, without an error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as e:
            if e.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal was closed
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries in C and for worker processes too
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


class UnbufferedWriter(io.BufferedWriter):
    """A writer that holds nothing back, and unlike the raw file writes all of what it is given."""

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.flush()
        return written


def outlive_readers() -> None:
    """Let prints go on when nobody reads them any more: `| head` must not end a run of days.

    Streams that a test or a notebook has put in the place of the real ones are left alone. Under PYTHONUNBUFFERED they
    stay unbuffered.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue
        stream.flush()
        raw, unbuffered = LastingFile(descriptor, "w", closefd=False), stream.write_through
        lasting = io.TextIOWrapper(
            UnbufferedWriter(raw) if unbuffered else io.BufferedWriter(raw), stream.encoding, stream.errors,
            line_buffering=stream.line_buffering, write_through=unbuffered,
        )  # fmt: skip
        setattr(sys, name, lasting)
