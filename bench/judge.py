"""Seconds of the evaluations on features: 50,000 x 512 for training, 10,000 to judge on, 10 classes.

    python3 -m bench.judge --output bench/results/FILE.json

The features are random, classes apart by about their spread: what an evaluation takes depends on the sizes.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from evaluation.features import Features
from evaluation.knn import knn_accuracy
from evaluation.linear import probe_accuracy
from evaluation.quality import quality
from utils.run import provenance

CLASSES, WIDTH = 10, 512


def features(n: int, seed: int) -> Features:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    y = torch.arange(n) % CLASSES
    return Features((0.15 * centres[y] + torch.randn(n, WIDTH, generator=g)).relu(), y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    train, val = features(50_000, 0), features(10_000, 1)
    subjects: dict[str, Callable[[], object]] = {
        "kNN, k = 20 and 200": lambda: knn_accuracy(train, val, [20, 200], CLASSES),
        "probe, penalty chosen": lambda: probe_accuracy(train, val, 0, torch.device("cpu")),
        "quality of 10,000": lambda: quality(val.x),
    }
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(f"{device}, torch {torch.__version__}; seconds, medians of {args.rounds}\n")
    rows = []
    for name, run in subjects.items():
        seconds = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(f"{name:<24} {statistics.median(seconds):>8.2f}", flush=True)
        rows.append({"name": name, "seconds": statistics.median(seconds), "rounds": seconds})
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"device": device, "rows": rows} | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()
