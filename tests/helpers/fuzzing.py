"""Hostile inputs by the thousand: a time limit, the files that may change, and counts of what happened."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from utils.errors import UserError


class Hang(BaseException):
    """An input that takes too long; not an Exception, so that nothing on the way swallows it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang in the main thread after some seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """All files and folders below a folder, with lengths and times of writing."""
    found = {}
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(here, name)
            facts = os.lstat(path)
            found[path] = (facts.st_size if name in files else 0, facts.st_mtime_ns if name in files else 0)
    return found


class Fuzzing:
    """Calls with hostile inputs and counts what comes of them.

    root: a folder of the test in which nothing may change but below `output`. A UserError of one line, or SystemExit of
    --help, is a refusal; everything else that is raised is a traceback for a user.
    """

    def __init__(self, name: str, root: Path, output: Path, seconds: float = 20) -> None:
        self.name, self.root, self.output, self.seconds = name, root, output, seconds
        self.inputs = self.refused = self.tracebacks = self.hangs = self.outside = 0
        self._before = self._outside_output()

    def call(self, function: Callable[[], object]) -> str | None:
        """The line with which the input is refused, or None; anything else fails the test and is counted."""
        self.inputs += 1
        message = None
        try:
            with time_limit(self.seconds):
                function()
        except UserError as e:
            message = str(e)
            self.refused += 1
            if len(message.splitlines()) != 1:
                self.tracebacks += 1
                raise AssertionError(f"not one line: {message!r}") from e
        except SystemExit as e:
            message = f"exit {e.code}"
            self.refused += 1
            if e.code not in (0, 2):
                raise AssertionError(message) from e
        except Hang:
            self.hangs += 1
            raise
        except Exception:
            self.tracebacks += 1
            raise
        if (now := self._outside_output()) != self._before:
            self.outside += 1
            changed = sorted(now.items() ^ self._before.items())
            self._before = now
            raise AssertionError(f"changed outside of the run folder: {changed}")
        return message

    def _outside_output(self) -> dict[str, tuple[int, int]]:
        return {path: facts for path, facts in tree(self.root).items() if not Path(path).is_relative_to(self.output)}

    def report(self) -> str:
        """A row of the table of counts."""
        return (
            f"{self.name:<34} inputs {self.inputs:>6,}  refused {self.refused:>6,}  tracebacks {self.tracebacks}  "
            f"hangs {self.hangs}  writes outside {self.outside}"
        )
