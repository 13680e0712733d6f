"""The scores of a row over its seeds, read from the ledger."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.logistic import chosen_on
from results.tables import SEEDS, read_record

Values = Mapping[str, list[float]]  # key of a score -> its values, one per seed


def evaluated(record: Mapping[str, Any] | None, network: str = "") -> dict[str, float]:
    """Key -> value of the scores of one network in an evaluation's record: the pretrained one, or one by its title.

    A logistic regression whose penalty was chosen in another way than it would be now is left out.
    """
    if record is None or not record["rows"]:
        return {}
    titles = [title for title in record["rows"] if title.endswith(network)]
    if not titles:
        return {}
    title = titles[-1]
    scores = record["rows"][title]["scores"]
    return {key: score["value"] for key, score in scores.items() if _is_chosen_as_now(record, title, key)}


def _is_chosen_as_now(record: Mapping[str, Any], title: str, key: str) -> bool:
    match = re.fullmatch(r"logistic(?:_([\d.]+)pct)?", key)
    if not match:
        return True
    labelled = round(record["data"]["train"]["images"] * float(match[1] or 100) / 100)
    same: bool = record["rows"][title]["chosen"][key]["chosen_on"] == chosen_on(labelled)
    return same


def values(table: str, name: str, suffixes: Sequence[str] = (), network: str = "") -> Values:
    """The scores of a row over its seeds, and its seconds of pretraining.

    suffixes: what the names of the evaluations end in. Without any the scores are those of the pretraining.
    """
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        run = read_record(table, f"{name}-s{seed}")
        scores = [evaluated(read_record(table, f"{name}-s{seed}{suffix}"), network) for suffix in suffixes]
        if run is not None and not suffixes:
            scores = [{key: score["value"] for key, score in run["scores"].items()}]
        if run is not None and run["kind"] in ("pretraining", "peer"):
            scores.append({"seconds": run["seconds"]})
        for key, value in (item for group in scores for item in group.items()):
            found.setdefault(key, []).append(value)
    return found
