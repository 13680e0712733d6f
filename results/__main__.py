"""Fill, draw and reproduce the tables of results.

python3 -m results data                                  link the images of the search, cut photographs
python3 -m results run search methods --minutes 60       run what the ledger lacks
python3 -m results run "methods:*-s1" claims:simclr-s0   the same, of these rows alone
python3 -m results draw                                  write the tables and plots of README and docs
python3 -m results show methods simclr-s0                print the commands of a row
python3 -m results reproduce methods simclr-s0           run a row again and print the differences
"""

import argparse
import sys
from collections.abc import Sequence

from results.data import WHOLE_PHOTOGRAPHS, cut_photographs, link_search_images
from results.draw import draw
from results.reproduce import command_lines, reproduce
from results.run import fill
from results.tables import TABLES, check_choice, chosen_runs
from utils.errors import run_cli


def main(argv: Sequence[str]) -> None:
    """Parse and do one of the five."""
    parser = argparse.ArgumentParser(prog="python3 -m results", description="Fill, draw and reproduce the results.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="link the images of the search, cut photographs in parts")
    run = commands.add_parser("run", help="run what the ledger lacks, in the order of value")
    run.add_argument(
        "tables", nargs="+", metavar="TABLE[:ROWS]", help=f"{', '.join(TABLES)}; ROWS as *-s1 or simclr-s0"
    )
    run.add_argument("--minutes", type=float, default=60, help="when to stop; what is running is resumed the next time")
    run.add_argument("--workers", type=int, default=1, help="runs at a time, of one thread each")
    commands.add_parser("draw", help="write the tables and plots of README and docs from the ledger")
    for name, text in (
        ("show", "print the commands of a row"),
        ("reproduce", "run a row again, print the differences"),
    ):
        row = commands.add_parser(name, help=text)
        row.add_argument("table", choices=list(TABLES))
        row.add_argument("row", help="a run's name, as simclr-s0")
    args = parser.parse_args(argv)
    if args.command == "data":
        link_search_images()
        if not cut_photographs():
            print(f"note: {WHOLE_PHOTOGRAPHS} has no photographs, so table transfer has digits only")
    elif args.command == "run":
        check_choice(args.tables)
        if failed := fill(lambda: chosen_runs(args.tables), args.minutes, args.workers):
            sys.exit(f"{failed} run{'s' if failed > 1 else ''} failed; the lines above name the logs")
    elif args.command == "draw":
        draw()
    else:
        print("\n".join((command_lines if args.command == "show" else reproduce)(args.table, args.row)))


if __name__ == "__main__":
    run_cli(main)
