"""A ledger of results: one JSON file per run, which says how each number was made, so that it can be made again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from utils.errors import UserError
from utils.files import write_json
from utils.provenance import provenance
from utils.scores import definition


class Images(Protocol):
    """The part of a list of images that a record needs."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str: ...


def check_ledger(folder: str | None) -> None:
    """Make the directory of a ledger before a run begins: hours of computing must not be lost for lack of it."""
    try:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot create the ledger {folder} ({e.strerror}); choose another --record") from e


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write <folder>/<name>.json: the record, with version, commit, packages and machine.

    record: "kind" (the command), "argv" (its arguments), "seed", "data" (see `data_facts`), "seconds", "scores" (see
    `with_definitions`), and whatever else tells how the scores came about.
    """
    write_json(folder / f"{name}.json", {**record, **provenance()})


def with_definitions(scores: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Key -> {"value", "definition"} of scores."""
    return {key: {"value": value, "definition": definition(key)} for key, value in scores.items()}


def data_facts(name: str, splits: Mapping[str, Images]) -> dict[str, Any]:
    """The data of a run: name of the data set, number and fingerprint of the images of each split."""
    facts = {split: {"images": len(images), "fingerprint": images.fingerprint()} for split, images in splits.items()}
    return {"name": name, **facts}
