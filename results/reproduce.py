"""Run a row of the ledger again, on whatever commit this is, and print both numbers and their difference."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.rows import MODELS
from results.run import one_thread, remove_left
from results.scores import evaluated
from results.tables import LEDGER, PEER, ROOT, TABLES, Run, read_record
from utils.errors import UserError, did_you_mean
from utils.provenance import provenance

AGAIN = "reproduced"


def find_run(table: str, name: str) -> Run:
    """The run of a table by its name ("simclr-s0"); an unknown one is a UserError."""
    runs = {run.name: run for run in TABLES[table]()}
    if name not in runs:
        raise UserError(f"table {table} has no row {name!r}{did_you_mean(name, runs)}; rows are {', '.join(runs)}")
    return runs[name]


def command_lines(table: str, name: str) -> list[str]:
    """The command lines of a run, in their order."""
    return [shlex.join(["python3", *c.program.split(), *c.words]) for c in find_run(table, name).commands]


def moved(words: list[str], ledger: Path) -> list[str]:
    """The arguments of a recorded command with run folders and ledger elsewhere."""
    changed = [word.replace(f"{MODELS}/", f"{MODELS}/{AGAIN}/") for word in words]
    changed[changed.index("--record") + 1] = str(ledger)
    return changed


def reproduce(table: str, name: str) -> list[str]:
    """Lines of a table: each score as recorded, as computed now, and the difference. Rows that it needs run first."""
    run = find_run(table, name)
    if not run.is_done():
        raise UserError(f"the ledger has no record of {table}/{name} yet; `python3 -m results run {table}` makes it")
    for need in run.needs:
        other, needed = need.split("/")
        reproduce(other, next(r.name for r in TABLES[other]() if needed in [c.run_id for c in r.commands]))
    lines = [f"{'':<28} {'recorded':>10} {'now':>10} {'difference':>11}"]
    for command in run.commands:
        recorded = read_record(table, command.run_id)
        assert recorded is not None  # the run is done
        ledger = ROOT / MODELS / AGAIN / "ledger" / table
        # A peer trains by a command of its own, whose arguments the record has.
        words = moved(list(command.words) if command.program == PEER else recorded["argv"], ledger)
        folder = ROOT / words[words.index("--output") + 1]
        if not all(is_of_this_commit(read_record(str(ledger), record)) for record in command.records):
            remove_left((folder / record for record in command.records), words)
            os.makedirs(ledger, exist_ok=True)
            subprocess.run([sys.executable, *command.program.split(), *words], cwd=ROOT, env=one_thread(), check=True)
        for record in command.records:
            lines += differences(table, record, ledger)
    return lines


def is_of_this_commit(record: Mapping[str, Any] | None) -> bool:
    """Whether a record was made by the code that is checked out now, so that it need not be computed again."""
    commit = provenance()["commit"]
    return record is not None and record["commit"] == commit and len(commit) == 40  # no "+changes", not "unknown"


def differences(table: str, name: str, ledger: Path) -> list[str]:
    """A line for each score of a record, beside that of the same run in another ledger."""
    before, now = read_record(table, name), read_record(str(ledger), name)
    if before is None or now is None:
        raise UserError(f"the run {name} left no record in {ledger.relative_to(LEDGER.parent)}; see its output above")
    if before["kind"] != "evaluation":
        old, new = ({key: score["value"] for key, score in record["scores"].items() if key != "images_per_second"}
                    for record in (before, now))  # fmt: skip
        old.pop("data_wait_fraction", None)
        old["seconds"], new["seconds"] = before["seconds"], now["seconds"]
    else:
        old, new = evaluated(before), evaluated(now)
    return [f"{key:<28} {old[key]:>10.3f} {new[key]:>10.3f} {new[key] - old[key]:>+11.3f}" for key in old]
