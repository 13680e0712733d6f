"""Types of command-line arguments: numbers within bounds, with one form of error message."""

import argparse
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(
    kind: type[Number], low: float = float("-inf"), high: float = float("inf"), above: bool = False
) -> Callable[[str], Number]:
    """An argparse type: a number of `kind` from `low` (with above: greater than low) to `high`."""

    def convert(text: str) -> Number:
        try:
            value: Number | None = kind(text)
        except ValueError:
            value = None
        if value is None or not (low < value if above else low <= value) or not value <= high:
            floor = "" if low == float("-inf") else f" {'above' if above else 'from'} {low:g}"
            ceiling = "" if high == float("inf") else f" to {high:g}"
            required = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r}, needs {required}{floor}{ceiling}")
        return value

    return convert


positive_int = number(int, 1)
count = number(int, 0)
positive_float = number(float, 0, above=True)
nonnegative_float = number(float, 0)
probability = number(float, 0, 1)
area_share = number(float, 0, 1, above=True)
