"""Write the report of run folders again, those of earlier versions and of runs that are under way included.

python3 main_report.py trained_models/RUN
"""

from typing import Any

from cli.evaluate import changed_evaluation_flags
from cli.parser import Parser
from cli.pretrain import changed_pretraining_flags
from data.datasets import DATASETS
from evaluation.evaluations import EVALUATIONS
from methods import METHODS
from runs.report import REPORT, write_report
from utils.distributed import rank_zero_print
from utils.errors import UserError, run_cli
from utils.files import read_json, typed_path
from utils.names import shown


def changed_flags(argv: list[str], pretraining: bool) -> dict[str, tuple[Any, Any]]:
    """Flag -> (value, default) of a recorded command; none, with a note, where a flag of it exists no more."""
    try:
        if pretraining:
            return changed_pretraining_flags(argv, METHODS, DATASETS)
        return changed_evaluation_flags(argv, list(DATASETS), EVALUATIONS)
    except UserError as e:
        rank_zero_print(f"  note: the page has no defaults beside the settings: {e}")
        return {}


def main(argv: list[str]) -> None:
    """Write report.html in each folder."""
    parser = Parser(description="Write report.html of run folders again.")
    parser.usage = "python3 %(prog)s RUN [RUN ...]"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of main_contrastive.py or main_linear.py")
    for folder in map(typed_path, parser.parse_args(argv).runs):
        if not (folder / "args.json").is_file():
            raise UserError(f"{shown(folder)} is no run: it has no args.json; name the folder of a run")
        args = read_json(folder / "args.json")
        pretraining = "plan" in args
        program = f"python3 {'main_contrastive.py' if pretraining else 'main_linear.py'}"
        changed = changed_flags([str(word) for word in args.get("argv", [])], pretraining)
        write_report(folder, program, changed)
        rank_zero_print(str(folder / REPORT))


if __name__ == "__main__":
    run_cli(main)
