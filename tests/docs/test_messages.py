"""The messages that docs/troubleshooting.md quotes are those of the code."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.commands import ROOT

FOLDERS = ("backbones", "cli", "data", "evaluation", "methods", "runs", "utils")
OF_OTHERS = {"CUDA out of memory", "No space left on device"}  # what torch and the system say
UNKNOWN = 4  # so many words of a message in a row that stand in no text of the code: names and numbers are fewer


def tokens(text: str) -> list[str]:
    """Words, with ellipses and punctuation as words of their own."""
    return re.findall(r"\.\.\.|(?:[^\s;:,().]|\.(?=\w))+|[;:,().]", text)


def texts_of_code() -> Iterator[str]:
    """Every string of the code, cut where a value is put into it."""
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                    yield from "".join(map(str, parts)).split("\0")
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def quoted_messages() -> list[str]:
    lines = (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
    quoted = [quote for line in lines if line.startswith("| ") for quote in re.findall("`([^`]+)`", line.split("|")[1])]
    return [quote for quote in quoted if len(quote.split()) >= UNKNOWN]


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    return [words for text in texts_of_code() if 2 <= len(words := tokens(text)) < 80]


def known_words(message: list[str], texts: list[list[str]]) -> set[int]:
    """Positions of the words that are a text of the code, or the part of one that an ellipsis begins or ends."""
    known: set[int] = set()
    ellipses = {i for i, word in enumerate(message) if word == "..."}
    for text in texts:
        for i in range(len(message)):
            if message[i : i + len(text)] == text:
                known |= {*range(i, i + len(text))}
            for end in (e for e in ellipses if i + 2 <= e < i + len(text)):
                if message[i:end] == text[: end - i]:
                    known |= {*range(i, end)}
            if i in ellipses:
                for size in range(2, len(text)):
                    if message[i + 1 : i + 1 + size] == text[-size:]:
                        known |= {*range(i + 1, i + 1 + size)}
    return known


@pytest.mark.parametrize("message", quoted_messages())
def test_quoted_message_is_one_of_the_code(message, texts):
    """What stands in no text of the code are names and numbers, a few words at a time."""
    for foreign in OF_OTHERS:
        message = message.replace(foreign, "...")
    words = ["...", *tokens(message), "..."]
    known, unknown = known_words(words, texts), list[str]()
    for i, word in enumerate(words):
        if i in known or word == "...":
            unknown = []
        elif not re.search(r"[\d'/_]|^--|^[;:,().]$", word):
            unknown.append(word)
        assert len(unknown) < UNKNOWN, f"the code does not say {' '.join(unknown)!r}"


def test_a_message_that_the_code_no_longer_says_is_noticed(texts):
    assert len(quoted_messages()) > 40
    stale = ["...", *tokens("the training set changed; restore it, or begin another run"), "..."]
    assert {"begin", "another"} <= {stale[i] for i in {*range(len(stale))} - known_words(stale, texts)}
