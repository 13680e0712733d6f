"""The scores of a row over its seeds, read from the ledger."""

from collections.abc import Mapping, Sequence
from typing import Any

from results.tables import SEEDS, read_record

Values = Mapping[str, list[float]]  # key of a score -> its values, one per seed


def evaluated(record: Mapping[str, Any] | None, network: str = "") -> dict[str, float]:
    """Key -> value of the scores of one network in an evaluation's record: the pretrained one, or one by its title."""
    if record is None or not record["rows"]:
        return {}
    titles = [title for title in record["rows"] if title.endswith(network)]
    scores = record["rows"][titles[-1]]["scores"] if titles else {}
    return {key: score["value"] for key, score in scores.items()}


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
