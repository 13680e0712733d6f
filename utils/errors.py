"""User errors: one line that says what came, what was needed and what to do, never a traceback."""

import contextlib
import difflib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from types import FrameType

import torch

from utils.distributed import (
    ProcessError,
    is_communication_error,
    launched_rank,
    launched_size,
    rank,
    reason_of,
    world_size,
)
from utils.output import outlive_readers
from utils.peers import ANSWER, Failure, leave_at_once, peers, watch_parent

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
SAME_MISTAKE = 1.5  # seconds before another process than the first says what the first may be saying too
NEAR = 0.75  # similarity from which a known name is suggested for an unknown one


class UserError(ValueError):
    """A mistake that a user can cause and correct; the message is one line."""

    code = 2  # exit status


class Interrupted(BaseException):
    """The end of a command to which a signal came; the message says what was saved.

    `code` is the exit status of the shells, 128 + signal: 130 SIGINT, 143 SIGTERM, 138 SIGUSR1, 129 SIGHUP. It may come
    anywhere, as KeyboardInterrupt may, so that no `except Exception` (an unreadable image) can swallow it.
    """

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.code = 128 + number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' with the known names near to `name`, or '' when none is near.

    Case and punctuation do not count: SimCLR is simclr, resnet-18 is resnet18. Names that begin with `name` come first.
    """
    names = list(known)
    plain: dict[str, str] = {}
    for candidate in names:
        plain.setdefault(_plain(candidate), candidate)
    if _plain(name) in plain:
        return f" (did you mean {plain[_plain(name)]}?)"
    longer = [candidate for key, candidate in plain.items() if len(name) > 2 and key.startswith(_plain(name))]
    near = longer[:3] or [
        plain[match] for match in difflib.get_close_matches(_plain(name), list(plain), n=3, cutoff=NEAR)
    ]
    return f" (did you mean {', '.join(near)}?)" if near else ""


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def leave_on_signals() -> None:
    """Let each of STOP_SIGNALS raise Interrupted; a SIGHUP that nohup ignores stays ignored.

    Worker processes that are forked from this one die of the signal, as they did without a handler.
    """
    owner = os.getpid()

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise Interrupted(f"Stopped by {signal.Signals(number).name}; unfinished work was not saved", number)

    for number in stop_signals():
        signal.signal(number, raise_interrupted)


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that stop a command: STOP_SIGNALS, without a SIGHUP that nohup ignores."""
    hung_up = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (hung_up and number == signal.SIGHUP))


def _end_without_words() -> None:
    """Ignore the signals to stop from here on: the work is done or refused, and the status of that is right.

    An exception of a handler while Python ends would be printed with its traceback. A Ctrl-C ends Python at once.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Call a command with the arguments of the shell; a user's mistake ends it with one line and status 2.

    A signal to stop ends it with one line too, and the status of that signal. Of several processes all end, and the
    line names the one that failed. A reader of the output that goes away (`| head`) changes nothing.
    """
    leave_on_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the terminal cannot print must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    outlive_readers()
    watch_parent()
    processes = launched_size()  # Lightning removes it from the environment when it cleans up
    try:
        main(sys.argv[1:])
        _end_without_words()
    except SystemExit:
        raise
    except BaseException as error:
        _exit_with_reason(error, processes)
    if group := peers():
        group.goodbye()


def _exit_with_reason(error: BaseException, processes: int) -> None:
    """End the process after an error, with the line that says why."""
    if group := peers():
        announce(error)
        leave_at_once(group.own.code if group.own else 1)
    failure = failure_of(error)
    if failure.bug:
        raise error
    if launched_rank() == 0:
        print(failure.line(1), file=sys.stderr)
    elif not failure.stop:
        with contextlib.suppress(Interrupted):  # the first process may make the same mistake, and its launcher end all
            time.sleep(SAME_MISTAKE)
            print(failure.line(processes), file=sys.stderr)
        leave_at_once(failure.code)  # the others wait for it; Python would tidy up for seconds
    _end_without_words()
    sys.exit(failure.code)


def announce(error: BaseException) -> None:
    """Tell the other processes why this one fails, so that they end too; once, and as early as it is known.

    Where another one failed first, and this error only follows from that, this process ends here.
    """
    group = peers()
    if group is None or group.own:
        return
    failure = failure_of(error)
    other = group.heard(ANSWER if is_communication_error(error) else 0)
    if other and (failure.stop or is_communication_error(error)):
        group.leave_now(other)
    if failure.bug:
        traceback.print_exception(error)
    if not group.tell(failure):
        print(failure.line(group.world), file=sys.stderr)


def failure_of(error: BaseException) -> Failure:
    """How the process ends that has this error: whose it is, exit status, and the reason in one line."""
    number = rank() if world_size() > 1 else launched_rank()
    if isinstance(error, ProcessError):
        return Failure(error.rank, error.code, reason_of(error))
    if isinstance(error, Interrupted):
        return Failure(number, error.code, str(error), stop=True)
    if isinstance(error, KeyboardInterrupt):
        return Failure(number, 130, "Interrupted; unfinished work was not saved", stop=True)
    if isinstance(error, UserError):
        return Failure(number, error.code, reason_of(error))
    if is_communication_error(error):
        return Failure(number, 1, f"lost the connection to another process ({reason_of(error)})")
    if advice := _resource_advice(error):
        return Failure(number, 1, f"{reason_of(error)}; {advice}")
    return Failure(number, 1, reason_of(error), bug=True)


def _resource_advice(error: BaseException) -> str | None:
    """What to do where the machine has no memory or no threads left; None for other errors."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "take smaller batches or views"
    if "DataLoader worker (pid" in str(error):  # a worker process that ended, which torch notices anywhere
        return "it was killed, perhaps for want of memory: take fewer workers (--num_workers), or smaller batches"
    if "can't start new thread" in str(error) or isinstance(error, BlockingIOError):  # BlockingIOError: fork
        return "take fewer workers, or raise the limit of processes (ulimit -u)"
    return None
