"""Fill and draw the tables of results.

python3 -m results data                                  link the images of the search
python3 -m results run search methods --minutes 60       run what the ledger lacks
"""

import argparse

from results.data import link_search_images
from results.run import fill
from results.tables import TABLES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m results", description="Fill and draw the tables of results.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="link the images of the search")
    run = commands.add_parser("run", help="run what the ledger lacks, in the order of value")
    run.add_argument("tables", nargs="+", choices=list(TABLES))
    run.add_argument("--minutes", type=float, default=60, help="when to stop; what is running is resumed the next time")
    run.add_argument("--workers", type=int, default=1, help="runs at a time, of one thread each")
    args = parser.parse_args()
    if args.command == "data":
        link_search_images()
    elif args.command == "run":
        fill(lambda: (run for table in args.tables for run in TABLES[table]()), args.minutes, args.workers)


if __name__ == "__main__":
    main()
