"""Numbers within bounds, and names of folders."""

import argparse

import pytest

from utils.arg_types import count, folder_name, interval, number, positive_float, positive_int, probability


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (positive_float, "0", "got '0', needs a number above 0"),
        (positive_float, "nan", "needs a number above 0"),
        (positive_float, "inf", "got 'inf', needs a number above 0 to 1.79769e+308"),
        (positive_float, "9" * 400, "needs a number above 0 to 1.79769e+308"),
        (positive_int, "9" * 30, "needs a whole number from 1 to 9,223,372,036,854,775,807"),
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


@pytest.mark.parametrize("text", ["", " ", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "a\nb", "a\x00", "a\u2028b"])
def test_folder_name_refuses_what_is_not_the_name_of_one_folder(text):
    with pytest.raises(argparse.ArgumentTypeError, match="needs the name of one folder") as e:
        folder_name(text)
    assert str(e.value).isprintable()


def test_folder_name_refuses_names_that_are_too_long_or_not_utf8():
    with pytest.raises(argparse.ArgumentTypeError, match="a name of 202 bytes, needs at most 200"):
        folder_name("\u00e9" * 101)
    with pytest.raises(argparse.ArgumentTypeError, match="needs a name in UTF-8"):
        folder_name("a\udcff")
    assert folder_name("simclr 4: caf\u00e9") == "simclr 4: caf\u00e9"


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", (90, "seconds")), ("15m", (900, "seconds")), ("1.5h", (5400, "seconds")), ("500steps", (500, "steps")),
     ("1step", (1, "steps")), ("1epoch", (1, "epochs")), ("10epochs", (10, "epochs"))],
)  # fmt: skip
def test_interval_is_a_number_with_its_unit(text, value):
    assert interval(text) == value


@pytest.mark.parametrize("text", ["", "15", "m", "0m", "0.0s", "0steps", "-1epoch", "1.5epochs", "15min", "1e3s", "1d"])
def test_interval_refuses_what_is_no_time_and_no_count(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 15m, 500steps or 1epoch") as e:
        interval(text)
    assert str(e.value).startswith(f"got {text!r}, needs")
