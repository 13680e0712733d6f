"""Torture: end, damage and starve small runs in every way that is known, and check what becomes of them.

    python -m tests.torture                       # each fault in some settings, which take turns
    python -m tests.torture --full                # each fault with every method, pipeline and number of processes
    python -m tests.torture --only "disk full" NaN  # faults whose name contains one of these texts
    python -m tests.torture --minutes 30 --seed 1 # faults at random moments

Prints a row as each is done and then the table; writes table.md, table.json and summary.md (a line for each fault), or
random.json, to --output; ends with 1 where a promise was broken. The folders of broken rows are kept there.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run the table, or the random faults; the exit status."""
    args = _parse(argv)
    place = Path(tempfile.mkdtemp(prefix="work-", dir=_made(args.output)))
    if args.minutes:
        from tests.torture.random_faults import random_faults

        failed = random_faults(place, args.output, args.minutes, args.seed, args.jobs)
    else:
        failed = _table(args, place)
    if not failed:
        shutil.rmtree(place)
    return int(failed)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="every method, pipeline and number of processes")
    parser.add_argument("--each", type=int, default=4, help="settings of each fault without --full (default: 4)")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name contains one of these texts")
    parser.add_argument("--real", action="store_true", help="a new Python for every process instead of a fork")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time (default: 2)")
    parser.add_argument("--minutes", type=float, help="faults at random moments, for this long, instead of the table")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random faults (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("trained_models/torture"), help="folder of the results")
    return parser.parse_args(argv)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _table(args: argparse.Namespace, place: Path) -> bool:
    """Run the rows; whether a promise was broken."""
    from tests.torture.faults import FAULTS
    from tests.torture.rows import Torture, rotation, settings_of

    faults = [fault for fault in FAULTS if any(text in fault.name for text in args.only)]
    if not faults:
        sys.exit(f"no fault has {' or '.join(args.only)} in its name; choose from: {'; '.join(f.name for f in FAULTS)}")
    cases = [(f, s) for f in faults for s in settings_of(f)] if args.full else rotation(faults, args.each)
    torture, began, rows = Torture(place, real=args.real), time.monotonic(), {}
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(torture.row, *case, number): number for number, case in enumerate(cases)}
        for done in as_completed(waiting):
            row = rows[waiting[done]] = done.result()
            print(f"{len(rows)}/{len(cases)}  " + "  ".join(row.cells()), flush=True)
    return report([rows[n] for n in sorted(rows)], args.output, time.monotonic() - began)


def report(rows: Sequence, output: Path, seconds: float) -> bool:
    """Print and write the table of the rows; whether a promise was broken."""
    from tests.torture.rows import broken, markdown, summary

    table, bad = markdown(rows), broken(rows)
    print("\n" + table)
    print(f"{len(rows)} rows in {seconds / 60:.1f} minutes: {len(rows) - len(bad)} promises kept, {len(bad)} broken")
    (output / "table.md").write_text(table)
    (output / "summary.md").write_text(summary(rows))
    (output / "table.json").write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    return bool(bad)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # before torch is imported
    sys.exit(main(sys.argv[1:]))
