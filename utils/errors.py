"""Mistakes of the user: one line that says what came, what was needed and what to do, never a traceback."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Anything that a user can cause and mend."""


class Stopped(Exception):
    """The user asked the run to stop (Ctrl-C, SIGTERM); the message says how to go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' with the nearest of the known names, or '' when none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def run(main: Callable[[list[str]], None]) -> None:
    """Call a command with the words of the shell; a user's mistake ends it with one line and status 2."""
    try:
        main(sys.argv[1:])
    except UserError as e:
        # A loader's worker hands its error on with its whole traceback in the message; the last line is the reason.
        print(f"error: {str(e).strip().splitlines()[-1].removeprefix('utils.errors.UserError: ')}", file=sys.stderr)
        sys.exit(2)
    except Stopped as e:
        print(f"\n{e}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("\nstopped before the end; what was not finished is not saved", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away (`| head`): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
