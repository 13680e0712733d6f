"""Everything that waits for a machine with a GPU: the tests marked gpu, the benchmark, and CIFAR-10 trainings.

    bash bench/on_gpu.sh tests --output FOLDER
    bash bench/on_gpu.sh bench --output FOLDER --cifar FOLDER
    bash bench/on_gpu.sh training --output FOLDER --cifar FOLDER --minutes 8.5

Each part ends by itself within --minutes; the same command then goes on with what is left. results.tar.gz in the
output folder holds all results and logs; it is written anew after every result. Nothing is downloaded. What has a
result in results/gpu, good or bad, is not done again: delete the file to repeat it.
Exit status: 0 all is done, 1 something failed, 75 time is over and some work is left.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

from bench.parts import ROOT, Item, Part
from bench.resumed_tests import outcomes, results
from utils.arg_types import positive_float
from utils.errors import UserError
from utils.files import read_json

PARTS = ("tests", "bench", "training")
AGAIN = 75  # exit status: time is over
TEST_LINES = Path("results", "gpu", "tests.jsonl")
FIRST_ROWS = ("train-32", "train-32-compiled", "train-32-step", "train-32-step-compiled", "train-32-step-graphs",
              "views-224-gpu", "train-32-lightly", "train-32-step-nnclr", "train-32-step-stem")  # fmt: skip
FEW = ["--epochs", "20"]
SOON = {"swav": ["--queue_start_epoch", "5"]}  # recipe -> flags of its 20 epochs, where its own come too late
ON_DIGITS = {  # recipe -> flags on the 1,438 digits, which are fewer than its own number of clusters
    "swav": ["--num_prototypes", "500"],
    "deepclusterv2": ["--num_centroids", "500", "500", "500"],
}
LATER = ("vicreg", "mocov2", "mocov3", "swav", "dino", "deepclusterv2", "ressl", "lejepa", "mae", "ijepa", "ibot")
# (name, recipe of bash_files/cifar10, flags that replace its own), the most valuable first: the speed and a first score
# of each method in a minute or so, then the recipes at full length.
TRAININGS = [
    ("simclr-20", "simclr", [*FEW, "--warmup_epochs", "2"]),
    ("simclr-20-compiled", "simclr", [*FEW, "--warmup_epochs", "2", "--compile"]),
    ("nnclr-20", "nnclr", [*FEW, "--warmup_epochs", "2"]),
    ("byol-20", "byol", [*FEW, "--warmup_epochs", "2"]),
    ("barlow_twins-20", "barlow_twins", [*FEW, "--warmup_epochs", "2"]),
    ("simsiam-20", "simsiam", FEW),
    ("simclr_supervised-20", "simclr_supervised", [*FEW, "--warmup_epochs", "2"]),
    ("rotnet-20", "rotnet", [*FEW, "--lr_decay_steps", "6", "12", "16"]),
    *((f"{name}-20", name, [*FEW, "--warmup_epochs", "2", *SOON.get(name, [])]) for name in LATER),
    *((name, name, []) for name in ("simclr", "nnclr", "rotnet", "simclr_supervised", "byol", "barlow_twins",
                                    "simsiam", *LATER)),
]  # fmt: skip
SHORT_TRAININGS = [("simclr-short", "simclr", ["--epochs", "2", "--warmup_epochs", "1", "--hidden_mlp", "16"])]
SHORT_BACKBONE = "test_resnet.r160_in1k"  # of 0.4 million weights
SHORT_ROWS = ("quality",)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bash bench/on_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, "all"], nargs="?", default="all", help="default: all, in this order")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="results; the same to go on")
    parser.add_argument("--minutes", type=positive_float, default=8.5, help="longest time of each part (default: 8.5)")
    parser.add_argument("--cifar", type=Path, metavar="PATH",
                        help="CIFAR-10: a folder with train/ and test/ of class folders, an archive of such a folder, "
                        "or torchvision's folder of data sets; default: the digits of scikit-learn")  # fmt: skip
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="class folders of JPEG photographs")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER",
                        help="wheels to install into the output folder first, such as simplejpeg's")  # fmt: skip
    parser.add_argument("--commit", help="commit of this copy, for the results, where it has no .git")
    parser.add_argument("--short", action="store_true", help="a minute of each part, to try the script itself")
    args = parser.parse_args(argv)
    for name in ("cifar", "photographs", "wheels"):
        path = getattr(args, name)
        if path and not path.exists():
            raise UserError(f"--{name} {path} does not exist")
        setattr(args, name, path and path.resolve())
    args.output = args.output.resolve()
    return args


def cifar_folder(path: Path | None, output: Path) -> tuple[list[str], Path | None]:
    """(flags of the commands that read CIFAR-10, its folder of class folders for the benchmark).

    An archive is unpacked into output/data once.
    """
    if path is None:
        return [], None
    if path.is_file():
        unpacked = output / "data" / "whole"
        if not unpacked.exists():
            with tarfile.open(path) as archive:
                archive.extractall(unpacked.with_name("part"), filter="data")
            unpacked.with_name("part").rename(unpacked)
        path = unpacked
    found = [f for f in (path, *sorted(path.iterdir())) if (f / "train").is_dir() and (f / "test").is_dir()]
    if found:
        folder = found[0]
        return ["--data_folder", str(folder), "--train_dir", "train", "--val_dir", "test"], folder / "train"
    if (path / "cifar-10-batches-py").is_dir():
        return ["--data_folder", str(path)], None
    raise UserError(f"--cifar {path}: neither train/ and test/ of class folders, nor cifar-10-batches-py, is in it")


def test_items(output: Path, short: bool) -> list[Item]:
    """One item: the tests themselves are remembered one by one."""
    marked = sorted(f for f in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in f.read_text())
    files = [str(f.relative_to(ROOT)) for f in marked if f != ROOT / "tests/bench/test_on_gpu.py"]
    chosen = ["-k", "views_on_cuda"] if short else []
    # A warning that only this version of torch or this GPU gives must not fail every test: it is written down instead.
    options = ["-p", "bench.resumed_tests", "-m", "gpu", "-W", "default", "--continue-on-collection-errors"]
    command = ["-m", "pytest", *options, *chosen, *files]

    def scores() -> dict[str, Any]:
        file = output / TEST_LINES
        found = outcomes(file)
        kinds = ("passed", "failed", "skipped")
        numbers: dict[str, Any] = {kind: sum(o == kind for o in found.values()) for kind in kinds}
        warnings = sorted({line["text"] for line in results(file) if "warning" in line})
        failed = [test for test, outcome in found.items() if outcome == "failed"]
        return numbers | {"failed_tests": failed, "warnings": warnings}

    return [Item("tests", [command], scores, least=20, patience=1000)]


def bench_items(output: Path, cifar: Path | None, photographs: Path | None, short: bool) -> list[Item]:
    """An item per row that can be measured here, the rows of training first."""
    from bench.rows import all_rows
    from bench.sides import Settings

    rows, settings = all_rows(), Settings(photographs, cifar or Path(), 0.0)  # digits stand in for CIFAR-10
    names = SHORT_ROWS if short else (*FIRST_ROWS, *(name for name in rows if name not in FIRST_ROWS))
    items = []
    for name in names:
        if reason := rows[name].missing(settings):
            print(f"bench-{name}: left out: {reason}", flush=True)
            continue
        file = output / "work" / f"bench-{name}.json"
        words = ["-m", "bench", "--rows", name, "--rounds", "1" if short else "3", "--output", str(file)]
        for flag, folder in (("--cifar", cifar), ("--photographs", photographs)):
            words += [flag, str(folder)] if folder and rows[name].reads == flag[2:] else []
        items.append(Item(f"bench-{name}", [words], partial(row_scores, file), least=10 if short else 60))
    return items


def row_scores(file: Path) -> dict[str, Any]:
    out = read_json(file)
    if out["left_out"]:
        raise ValueError("; ".join(out["left_out"].values()))
    row: dict[str, Any] = out["rows"][0]
    return row


def recipe(name: str) -> list[str]:
    """Arguments of the command in bash_files/cifar10, without its data folder."""
    text = (ROOT / "bash_files" / "cifar10" / f"{name}.sh").read_text()
    words = shlex.split(text.partition("main_contrastive.py ")[2].replace("\\\n", " "))
    at = words.index("--data_folder")
    return words[:at] + words[at + 2 :]


def training_items(output: Path, flags: list[str], short: bool) -> list[Item]:
    """Pretraining and evaluation of each run, and ClusterFit behind the RotNet that gives it clusters."""
    from utils.hardware import usable_cores

    work, workers, items = str(output / "work"), ["--num_workers", str(min(4, usable_cores()))], []
    for name, source, other in SHORT_TRAININGS if short else TRAININGS:
        words = recipe(source)
        words[0] = "cifar10" if flags else "digits"
        words[1] = SHORT_BACKBONE if short else words[1]
        digits = [] if flags else ON_DIGITS.get(source, [])
        commands = pretrain_and_evaluate(work, name, words[:2], [*words[2:], *other, *digits], [*flags, *workers])
        items.append(Item(name, commands, partial(run_scores, output, name), least=30, patience=20, seed=0))
        if name == "rotnet-20":
            items.append(clusterfit(output, name, words[:2], [*flags, *workers]))
    return items


def pretrain_and_evaluate(work: str, name: str, about: list[str], own: list[str], shared: list[str]) -> list[list[str]]:
    """The command that trains, or goes on with training, and the one that evaluates the backbone."""
    run = ["--seed", "0", "--output", work, "--run_id"]
    evaluation = ["--pretrained_feature_extractor", f"{work}/{name}", "--evaluation", "knn", "logistic"]
    return [["main_contrastive.py", *about, *own, *shared, *run, name, "--resume", "auto"],
            ["main_linear.py", *about, *evaluation, *shared, *run, f"{name}-evaluated-{{begun}}"]]  # fmt: skip


def clusterfit(output: Path, teacher: str, about: list[str], shared: list[str]) -> Item:
    """Clusters of the teacher's features, and a student of 20 epochs on them."""
    work, name = str(output / "work"), "clusterfit-20"
    command = ["main_linear.py", *about, "--pretrained_feature_extractor", f"{work}/{teacher}", "--evaluation",
               "cluster", "--num_clusters", "500", *shared, "--output", work]  # fmt: skip
    own = ["--method", "clusterfit", *FEW, "--batch_size", "128", "--lr", "0.2", "--weight_decay", "5e-4",
           "--scheduler", "cosine", "--cluster_file", f"{work}/{name}.npz"]  # fmt: skip
    commands = [[*command, "--cluster_output", f"{work}/{name}.npz", "--run_id", f"{name}-clusters-{{begun}}"],
                *pretrain_and_evaluate(work, name, about, own, shared)]  # fmt: skip
    return Item(name, commands, partial(run_scores, output, name), least=60, patience=20, seed=0)


def run_scores(output: Path, name: str) -> dict[str, Any]:
    """The summary of the training and the scores of the last evaluation."""
    work = output / "work"
    evaluated = max(work.glob(f"{name}-evaluated-*/summary.json"), key=lambda f: f.stat().st_mtime)
    return {"training": read_json(work / name / "summary.json"), "evaluation": read_json(evaluated)}


def machine() -> dict[str, Any]:
    """The device, and what nvidia-smi says of it where there is one."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    return {"device": device, "nvidia_smi": text.splitlines()}


def install_wheels(wheels: Path, folder: Path) -> None:
    files = [str(f) for f in sorted(wheels.glob("*.whl"))]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target"]
    if subprocess.run([*pip, str(folder), *files]).returncode:
        print(f"the wheels in {wheels} could not be installed; going on without them", flush=True)


def items_of(name: str, args: argparse.Namespace) -> list[Item]:
    if name == "tests":
        return test_items(args.output, args.short)
    flags, images = cifar_folder(args.cifar, args.output)
    if name == "bench":
        return bench_items(args.output, images, args.photographs, args.short)
    return training_items(args.output, flags, args.short)


def main(argv: list[str]) -> None:
    from utils.provenance import provenance

    args = parse(argv)
    if args.wheels:
        install_wheels(args.wheels, args.output / "site")
    about = machine() | provenance()
    about |= {"commit": args.commit} if args.commit else {}
    print(f"{about['device']}, torch {about['packages']['torch']}, commit {about['commit']}", flush=True)
    path = os.pathsep.join([str(args.output / "site"), os.environ.get("PYTHONPATH", str(ROOT))])
    environment = {"PYTHONPATH": path, "RESULTS_OF_TESTS": str(args.output / TEST_LINES)}
    part, status = Part(args.output, about, environment), 0
    for name in PARTS if args.part == "all" else [args.part]:
        items = items_of(name, args)
        failed, left = part.run(items, 60 * args.minutes)
        print(f"{name}: {len(items) - len(left)} of {len(items)} done, {len(failed)} failed", flush=True)
        status = max(status, AGAIN if left else int(bool(failed)))
    print(f"{args.output / 'results.tar.gz'}", flush=True)
    sys.exit(status)


if __name__ == "__main__":
    from utils.errors import run_cli

    run_cli(main)
