"""Compare pretraining runs: settings that differ, results with deviations over seeds, curves over one another.

python3 main_compare.py trained_models/RUN trained_models/OTHER
"""

from argparse import Namespace

from cli.parser import Parser
from runs.compare import as_text, compare
from runs.compare_page import comparison_page
from utils.errors import run_cli
from utils.files import typed_path, write_text_atomically


def parse_comparison(argv: list[str]) -> Namespace:
    """The arguments of a comparison."""
    parser = Parser(description="Compare pretraining runs; those that differ only in their seed are one row.")
    parser.usage = "python3 %(prog)s RUN RUN ... [flags]"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a pretraining run")
    parser.add_argument("--html", metavar="FILE", help="page to write; default: comparison.html beside the first run")
    return parser.parse_strictly(argv, {})


def main(argv: list[str]) -> None:
    """Read the runs, print the comparison and write its page."""
    args = parse_comparison(argv)
    comparison = compare(args.runs)
    print(as_text(comparison))
    path = typed_path(args.html or comparison.groups[0].runs[0].folder.with_name("comparison.html"))
    write_text_atomically(path, comparison_page(comparison))
    print(f"\ndone: {path}")


if __name__ == "__main__":
    run_cli(main)
