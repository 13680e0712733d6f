"""Names in messages: one line that can be printed, whatever the name holds."""

import os

import pytest

from utils.names import LONGEST, escaped, shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"a b/\xc3\xa9.jpg", "a b/é.jpg"),
        (b"\xff\xfe.jpg", "\\xff\\xfe.jpg"),
        (b"a\nerror: b\x1b[31m.jpg", "a\\nerror: b\\x1b[31m.jpg"),
        ("a\u202egpj.exe".encode(), "a\\u202egpj.exe"),
    ],
)
def test_escaped_is_one_line_that_can_be_printed(name, text):
    assert escaped(os.fsdecode(name)) == text
    assert shown(os.fsdecode(name)) == text
    text.encode("utf-8")


def test_shown_leaves_out_the_middle_of_a_very_long_name():
    name = "a" * 1000 + "b" * 1000
    assert shown(name) == "a" * (LONGEST // 2) + "..." + "b" * (LONGEST // 2)
    assert escaped(name) == name
