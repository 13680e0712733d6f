"""What the clients of dashboards wrote into a run folder, read back."""

import json
import struct
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes of a block of the client's log, in the format of LevelDB's


def records(folder: Path) -> list[Any]:
    """The records of the Weights & Biases file of a run, in the folder `offline-run-*`."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    content, at, parts, found = path.read_bytes(), 7, [], []  # 7 bytes: the name of the format
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(b"".join(parts)))
            parts = []
    return found


def history(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was logged there; parts of a picture have names of their own, such as curves/path."""
    rows: dict[int, dict[str, Any]] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.setdefault(int(items["_step"]), {}).update(items)
    return rows


def summary(folder: Path) -> dict[str, Any]:
    """What the summary of the run was updated with."""
    values: dict[str, Any] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return values


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value of the event files of TensorBoard; "" -> steps at which pictures were added."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    found = {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}
    return found | {f"picture {name}": {e.step: 0.0 for e in events.Images(name)} for name in events.Tags()["images"]}
