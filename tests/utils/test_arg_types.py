"""Numbers within bounds."""

import argparse

import pytest

from utils.arg_types import count, number, positive_float, positive_int, probability


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (positive_float, "0", "got '0', needs a number above 0"),
        (positive_float, "nan", "needs a number above 0"),
        (positive_int, "-4", "got '-4', needs a whole number from 1"),
        (positive_int, "1.5", "needs a whole number from 1"),
        (count, "-1", "needs a whole number from 0"),
        (probability, "1.2", "needs a number from 0 to 1"),
        (number(int, 8), "seven", "got 'seven', needs a whole number from 8"),
    ],
)
def test_number_refuses_what_is_out_of_bounds(convert, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as e:
        convert(text)
    assert message in str(e.value)


def test_number_converts_what_is_within_bounds():
    assert (positive_int("3"), positive_float("1e-3"), count("0"), probability("1")) == (3, 1e-3, 0, 1.0)
