"""Files of a run: the one atomic writer, space that is reserved on the disk, JSON, and the rows of metrics.csv.

Whatever fails, a full disk above all, leaves the file as it was and nothing beside it, and is a UserError of one line.
"""

import contextlib
import csv
import errno
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError
from utils.names import shown

EVAL_BACKBONE = "eval_backbone"  # key of a checkpoint: prefix of the names of the evaluated network's tensors
OUTPUT = "trained_models"  # the parent directory of run folders, where --output names no other
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room on the disk, in the quota, or below the limit of `ulimit -f`
UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}  # by a file system that cannot reserve space
T = TypeVar("T")


def typed_path(path: str | Path) -> Path:
    """A path that a user typed, with ~ for a home folder; one that cannot be looked up is a UserError."""
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, RuntimeError) as e:  # too long a name, a folder that may not be read, no such user after ~
        raise UserError(f"{shown(path)} cannot be found ({getattr(e, 'strerror', None) or e}); correct the path") from e
    return found


@contextlib.contextmanager
def replaced_atomically(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield the path of a new file, which takes the place of `path` when it is written whole, and survives a power cut.

    Whatever happens before leaves `path` as it was and nothing beside it; a disk that is full is a UserError.
    needed: bytes, for that error. The mode of the file follows the umask, whatever library writes it.
    """
    part = path.with_name(f".{path.name}.part")
    with disk_errors_named(path, needed):
        try:
            part.touch()
            mode = stat.S_IMODE(part.stat().st_mode)
            yield part
            part.chmod(mode)  # safetensors writes files that only their owner may read
            sync(part)
            os.replace(part, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def created_together(path: Path) -> Iterator[Path]:
    """Yield the path of `path` in a new folder, whose files all move beside `path` at the end, `path` itself last.

    Every file has its final name from the start, for files that refer to each other by name. One that exists is a
    UserError and is not overwritten; whatever fails leaves none of them behind.
    """
    moved: list[Path] = []
    with disk_errors_named(path):
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.part") as folder:
                yield Path(folder) / path.name
                parts = sorted(Path(folder).iterdir(), key=lambda part: (part.name == path.name, part.name))
                refuse_existing([path.with_name(part.name) for part in parts])
                for part in parts:
                    sync(part)
                    os.replace(part, path.with_name(part.name))
                    moved.append(path.with_name(part.name))
            sync(path.parent)
        except BaseException:
            for target in moved:
                with contextlib.suppress(OSError):
                    target.unlink(missing_ok=True)
            raise


def refuse_existing(paths: list[Path]) -> None:
    """Refuse to write where a file is."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists and is not overwritten; move it away, or choose another path")


@contextlib.contextmanager
def disk_errors_named(path: Path, needed: int | None = None) -> Iterator[None]:
    """Make an error of the operating system a UserError that names the file and says what to do.

    It is found also where a library hides it behind an error of its own. needed: bytes that the file takes.
    """
    try:
        yield
    except Exception as e:
        if isinstance(e, UserError) or not (reason := _reason_of_disk(e)):
            raise
        size = "" if needed is None else f"{needed / 2**30:.2f} GiB are needed; "
        advice = "free some space" if _is_full(e) else "name another file, or make the folder writable"
        raise UserError(f"cannot write {path} ({reason}); {size}{advice}; what was there is untouched") from e


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason_of_disk(error: BaseException) -> str | None:
    """What the operating system said; None if nothing."""
    for e in _chain(error):
        if isinstance(e, OSError):
            return e.strerror or str(e)
        if "os error" in str(e):  # safetensors
            return " ".join(str(e).split())
    return None


def _is_full(error: BaseException) -> bool:
    codes = {f"os error {code}" for code in FULL}
    return any(getattr(e, "errno", None) in FULL or any(code in str(e) for code in codes) for e in _chain(error))


def create_allocated(path: Path, size: int, header: bytes = b"") -> None:
    """Create a file of `size` bytes, zero after the header, whose blocks are reserved on the disk.

    A disk without room is a UserError here; writing to a map of a file without blocks would end the process by SIGBUS.
    File systems that copy on write (btrfs, zfs) may still run out of space later.
    """
    with replaced_atomically(path, needed=size) as part, part.open("wb", buffering=0) as file:
        file.write(header)
        allocate(file.fileno(), size)


def allocate(file: int, size: int) -> None:
    """Extend an open file to `size` bytes with blocks on the disk, the new ones zero; OSError without room for them."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as e:
            if e.errno not in UNSUPPORTED:
                raise
    at = os.lseek(file, 0, os.SEEK_END)
    while at < size:  # macOS, Windows, some network file systems
        at += os.write(file, bytes(min(2**24, size - at)))


def _write_whole(file: io.FileIO, content: bytes) -> None:
    """Write all of the content to a file without a buffer, which may take a part of it at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def append_text(path: Path, text: str) -> None:
    """Append text whole: what a full disk cut off is removed again, so that the file ends as it did."""
    with disk_errors_named(path), path.open("ab", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        try:
            _write_whole(file, text.encode())
        except BaseException:
            os.ftruncate(file.fileno(), length)
            raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write the whole new file, or leave the old one, whatever happens in between."""
    with replaced_atomically(path) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be no UTF-8


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON atomically; values that JSON does not know become text."""
    write_text_atomically(path, _json(content))


def create_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON to a file that did not exist: of two processes one creates it, the other FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb", buffering=0) as f:
        try:
            _write_whole(f, _json(content).encode())
            os.fsync(f.fileno())
        except BaseException:
            path.unlink()
            raise


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file is a UserError that names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a run folder that holds it") from None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read ({' '.join(str(e).split())}); restore it from a backup") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read (it holds no JSON object); restore it from a backup")
    return content


def entry(path: Path, content: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """An entry of a JSON file by its dotted key; one that is missing or of another type is a UserError with both names.

    path: where the content was read from.
    """
    value: Any = content
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise UserError(f"{path} is damaged: it has no {key}; restore it from a backup")
        value = value[name]
    if kind is float and isinstance(value, int):  # JSON writes 80.0 as 80 in some tools
        kind = int  # type: ignore[assignment]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = type(value).__name__
        raise UserError(f"{path} is damaged: {key} is {found}, not {kind.__name__}; restore it from a backup")
    result: T = value
    return result


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics.csv, without one that a crash cut off; none where the file does not exist.

    Every value is a number or empty. A file that no run wrote is a UserError that names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        whole = [row for row in rows if None not in row and None not in row.values()]
        for row in whole:
            int(row["step"]), [float(value) for value in row.values() if value]
        return whole
    except FileNotFoundError:
        return []
    except KeyError:
        reason = "it has no column step"
    except (OSError, ValueError, csv.Error) as e:
        reason = " ".join(str(e).split())
    raise UserError(f"{path} cannot be read ({reason}); restore it from a backup, or remove it")


def last_value(rows: list[dict[str, str]], name: str) -> float | None:
    """The newest value of a metric, or None where it was never logged."""
    return next((float(row[name]) for row in reversed(rows) if row.get(name)), None)
