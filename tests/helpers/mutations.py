"""Mutations for hypothesis: bytes of a file changed, removed, added or cut off; entries of JSON replaced or removed."""

import copy
from typing import Any

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


JSONMutation = tuple[list[int], str, Any]


def json_mutations() -> SearchStrategy[list[JSONMutation]]:
    """One to three mutations: the way to an entry (which child at each level), what is done, and with which value."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    odd = st.sampled_from([[], {}, [None], {"a": 1}, ["--help"], [[]], -1, 0, 2**70, "x\ny", "\udcff", "-1", "nan"])
    way = st.lists(st.integers(0, 40), max_size=4)
    return st.lists(
        st.tuples(way, st.sampled_from(["set", "set", "remove", "wrap"]), plain | odd), min_size=1, max_size=3
    )


def apply_to_json(changes: list[JSONMutation], content: Any) -> Any:
    """The content after every change; the content itself is replaced where the way is empty."""
    root = [copy.deepcopy(content)]
    for way, what, shared in changes:
        value = copy.deepcopy(shared)  # hypothesis hands out the same list again
        parent: Any = root
        key: Any = 0
        for turn in way:
            child = parent[key]
            if not isinstance(child, dict | list) or not child:
                break
            parent, key = child, (list(child)[turn % len(child)] if isinstance(child, dict) else turn % len(child))
        if what == "remove" and parent is not root:
            del parent[key]
        else:
            parent[key] = [parent[key]] if what == "wrap" else value
    return root[0]
