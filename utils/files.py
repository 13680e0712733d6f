"""Files of a run: atomic writes, JSON, and the rows of metrics.csv."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError

OUTPUT = "trained_models"  # the parent directory of run folders, where --output names no other


def write_text_atomically(path: Path, text: str) -> None:
    """Write the whole new file, or leave the old one, whatever happens in between."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON atomically; values that JSON does not know become text."""
    write_text_atomically(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file is a UserError that names it."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a run folder that holds it") from None
    except (OSError, json.JSONDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}); restore it from a backup") from e


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics.csv, without one that a crash cut off; none where the file does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return [row for row in csv.DictReader(f) if None not in row.values()]


def last_value(rows: list[dict[str, str]], name: str) -> float | None:
    """The newest value of a metric, or None where it was never logged."""
    return next((float(row[name]) for row in reversed(rows) if row.get(name)), None)
