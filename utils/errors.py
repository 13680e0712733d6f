"""User errors: one line that says what came, what was needed and what to do, never a traceback."""

import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType

from utils.distributed import launched_rank

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
NEAR = 0.75  # similarity from which a known name is suggested for an unknown one


class UserError(ValueError):
    """A mistake that a user can cause and correct; the message is one line."""


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


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Call a command with the arguments of the shell; a user's mistake ends it with one line and status 2.

    A signal to stop ends it with one line too, and the status of that signal.
    """
    leave_on_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the terminal cannot print must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except UserError as e:
        # A worker process passes its error on with the whole traceback in the message; the last line is the reason.
        print(f"error: {str(e).strip().splitlines()[-1].removeprefix('utils.errors.UserError: ')}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as e:
        if launched_rank() == 0:
            print(f"\n{e}", file=sys.stderr)
        sys.exit(e.code)
    except KeyboardInterrupt:
        print("\nInterrupted; unfinished work was not saved", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output went away (`| head`): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
