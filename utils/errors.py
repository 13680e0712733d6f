"""User errors: one line that says what came, what was needed and what to do, never a traceback."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable

NEAR = 0.75  # similarity from which a known name is suggested for an unknown one


class UserError(ValueError):
    """A mistake that a user can cause and correct; the message is one line."""


class Interrupted(Exception):
    """The run was interrupted (Ctrl-C, SIGTERM) and saved; the message names the command that resumes it."""


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


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Call a command with the arguments of the shell; a user's mistake ends it with one line and status 2."""
    try:
        main(sys.argv[1:])
    except UserError as e:
        # A worker process passes its error on with the whole traceback in the message; the last line is the reason.
        print(f"error: {str(e).strip().splitlines()[-1].removeprefix('utils.errors.UserError: ')}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as e:
        print(f"\n{e}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("\nInterrupted; unfinished work was not saved", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output went away (`| head`): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
