"""The table that the evaluations fill: on the screen, in the run folder, on the dashboard."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from runs.loggers import log_rows
from utils.files import write_json
from utils.provenance import provenance

Numbers = dict[str, float]
DECIMALS = {"alpha-ReQ": 3, "alignment": 3, "uniformity": 3, "std": 4, "NMI": 3}  # in the table; accuracies have one


def report(args: Namespace, argv: list[str], told: str, rows: Mapping[str, Numbers], folder: Path) -> None:
    """Row of the table -> its numbers, under the line `told`; none where only files were asked for."""
    print(f"\n{told}\n\n{table(rows)}\n\n{folder}" if any(rows.values()) else f"\n{folder}")
    write_json(folder / "args.json", {"argv": argv, "typed": vars(args)} | provenance())
    write_json(folder / "summary.json", dict(rows))
    log_rows(args, folder, rows, sorted(folder.glob("*.png")))


def table(rows: Mapping[str, Numbers]) -> str:
    """A line per row, a column per number, accuracies in per cent; a deviation beside its mean."""
    columns = [c for c in dict.fromkeys(c for n in rows.values() for c in n) if not c.endswith((" +-", " C", " lr"))]
    lines = [["", *columns]] + [[name, *(_cell(numbers, c) for c in columns)] for name, numbers in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _cell(numbers: Numbers, column: str) -> str:
    if column not in numbers:
        return "-"
    deviation = f" +- {numbers[f'{column} +-']:.1f}" if f"{column} +-" in numbers else ""
    return f"{numbers[column]:.{DECIMALS.get(column, 1)}f}" + deviation
