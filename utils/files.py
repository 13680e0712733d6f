"""Files of a run: atomic writes, JSON, and the rows of metrics.csv."""

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.names import shown

OUTPUT = "trained_models"  # the parent directory of run folders, where --output names no other


def typed_path(path: str | Path) -> Path:
    """A path that a user typed, with ~ for a home folder; one that cannot be looked up is a UserError."""
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, RuntimeError) as e:  # too long a name, a folder that may not be read, no such user after ~
        raise UserError(f"{shown(path)} cannot be found ({getattr(e, 'strerror', None) or e}); correct the path") from e
    return found


@contextlib.contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a new file, which takes the place of `path` when it is written whole, and survives a power cut.

    Whatever happens before leaves `path` as it was and nothing beside it; a disk that is full is a UserError.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except BaseException as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(e, Exception) and (reason := _reason_of_disk(e)):
            raise UserError(f"cannot write {path} ({reason}); free some space; what was there is untouched") from e
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason_of_disk(error: BaseException | None) -> str | None:
    """What the operating system said, also where a library hides its error behind one of its own; None if nothing."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if "os error" in str(error):  # safetensors
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def write_text_atomically(path: Path, text: str) -> None:
    """Write the whole new file, or leave the old one, whatever happens in between."""
    with replaced_atomically(path) as part:
        part.write_text(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON atomically; values that JSON does not know become text."""
    write_text_atomically(path, _json(content))


def create_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON to a file that did not exist: of two processes one creates it, the other FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w") as f:
        f.write(_json(content))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


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
