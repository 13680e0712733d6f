"""The table of scores on the screen: column titles are made from the scores' keys here."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.interfaces import Data
from utils.files import write_json
from utils.ledger import data_facts, with_definitions, write_record
from utils.provenance import provenance
from utils.scores import PERCENT, ResultRow, Rows, Score

TITLES = {
    "logistic": "logistic",
    "logistic/map": "logistic mAP",
    "linear_sgd": "linear (SGD)",
    "finetune": "fine-tuned",
    "quality/rankme": "RankMe",
    "quality/alpha_req": "alpha-ReQ",
    "quality/uniformity": "uniformity",
    "quality/std": "std",
    "quality/alignment": "alignment",
    "cluster/nmi": "NMI",
    "cluster/purity": "purity",
}
DECIMALS = {"quality/rankme": 1, "quality/std": 4}  # else 1 of a percentage, 3 of another number


def column_title(score: Score) -> str:
    """The title of a score's column: "kNN 20", "5-shot (50 labels)", "linear (SGD), 1 % of labels"."""
    if match := re.fullmatch(r"knn_(\d+)(/map)?", score.name):
        return f"kNN {match[1]}{' mAP' if match[2] else ''}"
    if match := re.fullmatch(r"fewshot_(\d+)", score.name):
        return f"{match[1]}-shot ({score.labelled_images} labels)"
    if match := re.fullmatch(r"(\w+)_([\d.]+)pct", score.name):
        return f"{TITLES.get(match[1], match[1])}, {match[2]} % of labels"
    return TITLES.get(score.name, score.name)


def table(rows: Sequence[ResultRow]) -> str:
    """The lines of the table as aligned text."""
    lines = table_cells(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def table_cells(rows: Sequence[ResultRow]) -> list[list[str]]:
    """Titles of the columns, then a line per row, a column per score; a deviation beside its mean, "-" for none."""
    columns = list(dict.fromkeys(column_title(score) for row in rows for score in row.scores))
    lines = [["", *columns]]
    for row in rows:
        cells = {column_title(score): _cell(score) for score in row.scores}
        lines.append([row.label, *(cells.get(column, "-") for column in columns)])
    return lines


def _cell(score: Score) -> str:
    decimals = DECIMALS.get(score.name, 1 if score.unit == PERCENT else 3)
    deviation = "" if score.deviation is None else f" +- {score.deviation:.{decimals}f}"
    return f"{score.value:.{decimals}f}{deviation}"


def report(
    dataset: str, data: Data, rows: Rows, folder: Path, command: Mapping[str, Any], ledger: str | None = None
) -> None:
    """Print the table (none where only files were asked for); write its JSON files and a ledger's record.

    command: what led here ("argv", "flags"), for args.json. ledger: directory to record the evaluation in, if any.
    """
    if any(row.scores for row in rows):
        validation = f", {len(data.val):,} validation images" if data.val is not None else ""
        several = any(score.name.endswith("/map") for row in rows for score in row.scores)
        units = "mean average precision (mAP) in per cent" if several else "accuracies are top-1 in per cent"
        print(f"\n{dataset}: {len(data.train):,} training images{validation}; {units}\n\n{table(rows)}")
    print(f"\n{folder}")
    write_json(folder / "args.json", {**command, **provenance()})
    write_json(folder / "summary.json", {row.title: row.as_json() for row in rows})
    write_json(folder / "table.json", {"kind": "table", "lines": table_cells(rows)})
    if ledger:
        write_record(Path(ledger), folder.name, _record(dataset, data, rows, command))


def _record(dataset: str, data: Data, rows: Rows, command: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an evaluation: scores under "rows", by the titles of the networks."""
    scored = [row for row in rows if row.scores]
    return {
        "kind": "evaluation",
        "argv": command["argv"],
        "seed": command["flags"]["seed"],
        "data": data_facts(dataset, data.splits()),
        "seconds": round(sum(row.seconds for row in scored), 1),
        "rows": {row.title: row.as_json() | {"scores": with_definitions(row.numbers())} for row in scored},
    }
