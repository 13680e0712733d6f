"""Speed and memory of Lookalike beside baselines, measured on this machine.

    python3 -m bench --photographs FOLDER --cifar FOLDER --output FILE.json
    python3 -m bench --rows train-32-lightly --cifar FOLDER

A row has two sides, Lookalike and a baseline ("ours" and "theirs" in the JSON), each in a process of its own, that work
in turns. The ratio says how many times as fast Lookalike is: the median of the ratios of the rounds. Memory is that of
the host at the peak, worker processes included.
"""

import argparse
import platform
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench.rows import Row, all_rows
from bench.sides import Settings, Side, SideError
from utils.arg_types import positive_float, positive_int
from utils.errors import UserError, did_you_mean
from utils.files import read_json, write_json
from utils.provenance import provenance

WIDTH = 33  # of the column of names


def parse(argv: list[str], names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photographs", type=Path, metavar="FOLDER", help="class folders of photographs, such as ImageNet"
    )
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="class folders of CIFAR images (default: digits)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help=f"rows to measure (default: all): {', '.join(names)}")
    parser.add_argument("--rounds", type=positive_int, default=5, help="rounds per row")
    parser.add_argument("--seconds", type=positive_float, default=2.0, help="least length of a round of small work")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print this file of results as a Markdown table and exit"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results to this JSON file")
    args = parser.parse_args(argv)
    for name in args.rows or ():
        if name not in names:
            raise UserError(f"unknown row {name!r}{did_you_mean(name, names)}; choose from {', '.join(names)}")
    for flag in ("photographs", "cifar"):
        folder = getattr(args, flag)
        if folder and not (folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())):
            raise UserError(f"--{flag} {folder} is not a folder of class folders with images")
    return args


def draw_digits(folder: Path) -> Path:
    """Write the 1,797 scans of digits as class folders of images of 32 pixels, in place of CIFAR."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image * (255 / 16)).astype("uint8")).convert("RGB").resize((32, 32)).save(path)
    return folder


def measure(row: Row, settings: Settings, rounds: int) -> dict[str, Any]:
    """Measure both sides in turns; the entry of the row in the JSON."""
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(closing(Side(side[1], settings, row.cores)))
            for name, side in (("ours", row.ours), ("theirs", row.theirs))
            if side
        }
        taken = [{name: side.round() for name, side in sides.items()} for _ in range(rounds)]
        facts = {name: side.facts() for name, side in sides.items()}
    out: dict[str, Any] = {"unit": row.unit, "cores": row.cores or "all"}
    if row.theirs:
        out["ratio"] = statistics.median(
            r["ours"] / r["theirs"] if row.unit.endswith("/s") else r["theirs"] / r["ours"] for r in taken
        )
    for name, side in (("ours", row.ours), ("theirs", row.theirs)):
        if side:
            out[name] = {"what": side[0], "median": statistics.median(r[name] for r in taken)} | facts[name]
    return out | {"rounds": taken}


def show(result: dict[str, Any]) -> None:
    ours, theirs = result["ours"], result.get("theirs", {})
    digits = ".1f" if result["unit"].endswith("/s") else ".3f"
    memory = " ".join(f"{number(s.get('host_peak_bytes'), '.0f', 2**20):>6}" for s in (ours, theirs))
    print(f"{result['name']:<{WIDTH}} {number(result.get('ratio'), '.2f'):>6} {number(ours['median'], digits):>9} "
          f"{number(theirs.get('median'), digits):>9} {result['unit']:<8} {memory}  {ours['what']}; "
          f"{theirs.get('what', 'no baseline')}\n{'':<{WIDTH}} {result['command']}", flush=True)  # fmt: skip


def number(value: float | None, digits: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, digits)


def markdown(out: dict[str, Any]) -> str:
    """The rows of a file of results as a table for the docs."""
    titles = (
        "row",
        "times as fast",
        "Lookalike",
        "baseline",
        "unit",
        "host MiB",
        "what Lookalike runs; what the baseline runs",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in out["rows"]:
        sides = [side for side in (row["ours"], row.get("theirs")) if side]
        digits = ".3f" if sides[0]["median"] < 20 else ",.1f" if sides[0]["median"] < 1000 else ",.0f"
        medians = [number(side["median"], digits) for side in sides] + ["-"] * (2 - len(sides))
        memory = " / ".join(number(side.get("host_peak_bytes"), ".0f", 2**20) for side in sides)
        what = "; ".join(side["what"].removeprefix("main_contrastive.py ") for side in sides)
        cells = (f"`{row['name']}`", number(row.get("ratio"), ".2f"), *medians, row["unit"], memory, what)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command(name: str, reads: str | None, args: argparse.Namespace) -> str:
    folder = getattr(args, reads) if reads else None
    return shlex.join(["python3", "-m", "bench", "--rows", name, *([f"--{reads}", str(folder)] if folder else [])])


def about(args: argparse.Namespace) -> dict[str, Any]:
    """Device, date, versions and commit."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    peers = {}
    for name in ("faiss-cpu", "lightly", "nvidia-dali-cuda130", "simplejpeg"):
        with suppress(PackageNotFoundError):
            peers[name] = version(name)
    return {
        "device": f"{device}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
        "small_images": "--cifar" if args.cifar else "digits, drawn at 32 pixels",
    } | {"peers": peers} | provenance()  # fmt: skip


def attempt(row: Row, settings: Settings, rounds: int) -> tuple[dict[str, Any], str | None]:
    """(result, None), or ({}, reason why there is no result)."""
    missing = row.missing(settings)
    if missing:
        return {}, missing
    try:
        return measure(row, settings, rounds), None
    except SideError as e:
        print(e, file=sys.stderr)
        return {}, f"it failed: {str(e).strip().splitlines()[-1]}"


def main(argv: list[str]) -> None:
    rows = all_rows()
    args = parse(argv, list(rows))
    if args.table:
        print(markdown(read_json(args.table)))
        return
    requested = {name: rows[name] for name in args.rows or rows}
    out = about(args) | {"rows": [], "left_out": {}}
    print(f"{out['device']}, torch {torch.__version__}; medians of {args.rounds}, host memory in MiB\n\n"
          f"{'row':<{WIDTH}} {'ratio':>6} {'Lookalike':>9} {'baseline':>9} {'':<8} host memory of both")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        small = any(row.reads == "cifar" for row in requested.values())
        cifar = args.cifar or (draw_digits(Path(folder)) if small else None)
        for name, row in requested.items():
            result, reason = attempt(row, Settings(args.photographs, cifar, args.seconds), args.rounds)
            if reason:
                out["left_out"][name] = reason
                print(f"{name:<{WIDTH}} left out: {reason}", flush=True)
            else:
                out["rows"].append({"name": name, "command": command(name, row.reads, args)} | result)
                show(out["rows"][-1])
            if args.output:  # after every row: an interruption loses no measured row
                args.output.parent.mkdir(parents=True, exist_ok=True)
                write_json(args.output, out)
