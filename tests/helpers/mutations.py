"""Mutations of a file's bytes for hypothesis: bytes changed, removed, added, or the rest cut off."""

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Mutation = tuple[str, float, bytes]


def mutations() -> SearchStrategy[list[Mutation]]:
    """One to eight mutations: what is done, where (a share of the length), and with which bytes."""
    where = st.floats(0, 1, exclude_max=True) | st.floats(0, 0.15)  # headers are short and matter most
    what = st.sampled_from(["set", "set", "set", "delete", "insert", "cut"])
    return st.lists(st.tuples(what, where, st.binary(min_size=1, max_size=6)), min_size=1, max_size=8)


def apply(changes: list[Mutation], content: bytes) -> bytes:
    """The content after every change."""
    data = bytearray(content)
    for what, where, other in changes:
        at = int(where * len(data))
        if what == "set":
            data[at : at + len(other)] = other
        elif what == "delete":
            del data[at : at + len(other)]
        elif what == "insert":
            data[at:at] = other
        else:
            del data[at:]
    return bytes(data)
