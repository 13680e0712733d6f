"""Types of command-line arguments: numbers, intervals and names of folders, with one form of error message."""

import argparse
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)
# (names of flags, what they need, whether that is there): the flags have no effect without it.
Rule = tuple[tuple[str, ...], str, Callable[[argparse.Namespace], bool]]
CONTROL = ("Cc", "Zl", "Zp")  # control characters, and the separators that end a line
SECONDS = {"s": 1, "m": 60, "h": 3600}
LONGEST_NAME = 200  # bytes; file systems allow 255, and files beside the folder have longer names


def number(
    kind: type[Number], low: float = float("-inf"), high: float = float("inf"), above: bool = False
) -> Callable[[str], Number]:
    """An argparse type: a finite number of `kind` from `low` (with above: greater than low) to `high`.

    Whole numbers have at most 63 bits, so that every product with a rate is a finite number.
    """
    largest = 2**63 - 1 if kind is int else sys.float_info.max

    def convert(text: str) -> Number:
        try:
            value: Number | None = kind(text)
        except ValueError:
            value = None
        if value is None or not (low < value if above else low <= value) or not value <= min(high, largest):
            floor = "" if low == float("-inf") else f" {'above' if above else 'from'} {low:g}"
            too_large = value is not None and value > largest
            ceiling = f" to {_bound(min(high, largest))}" if too_large or high != float("inf") else ""
            required = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r}, needs {required}{floor}{ceiling}")
        return value

    return convert


def _bound(value: float) -> str:
    """A bound in an error, a whole one with all digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


positive_int = number(int, 1)
count = number(int, 0)
positive_float = number(float, 0, above=True)
nonnegative_float = number(float, 0)
probability = number(float, 0, 1)
area_share = number(float, 0, 1, above=True)


def interval(text: str) -> tuple[float, str]:
    """An argparse type: an interval as (number, unit); the unit is seconds (90s, 15m, 1.5h), steps or epochs."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])|([0-9]+)(step|epoch)s?", text)
    seconds, unit, whole, counted = match.groups() if match else ("0", "s", None, None)
    number, name = (int(whole), f"{counted}s") if whole else (float(seconds) * SECONDS[unit], "seconds")
    if not number:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, needs a number above 0 with its unit: s, m or h for a time, steps or epochs for a count, "
            f"such as 15m, 500steps or 1epoch"
        )
    return number, name


def folder_name(text: str) -> str:
    """An argparse type: the name of one folder, which leads nowhere else and which every file system can hold."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # bytes of the shell that are not UTF-8 arrive as surrogates
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a name in UTF-8") from None
    if size > LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"got a name of {size} bytes, needs at most {LONGEST_NAME}; shorten it")
    if text.strip() in ("", ".", "..") or any(c in "/\\" or unicodedata.category(c) in CONTROL for c in text):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, needs the name of one folder; remove slashes and control characters"
        )
    return text
