"""Names of files and folders in messages: on one line, in characters that every terminal can print."""

import os
from pathlib import Path

LONGEST = 400  # characters of a name in a message


def escaped(name: str | Path) -> str:
    """The whole name; line breaks, control characters and bytes that are not UTF-8 are written as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(name: str | Path) -> str:
    """`escaped`, without the middle of a very long name."""
    text = escaped(name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
