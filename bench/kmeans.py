"""Seconds of an iteration of k-means by torch and by faiss, same rows, start and threads, in turns.

    python3 -m bench.kmeans --output bench/results/FILE.json

An iteration is what another one adds to a call: (seconds of 3 - seconds of 1) / 2. The features are a mixture of K
Gaussians that overlap, cut off at 0: what an iteration takes depends on the sizes. faiss: requirements-faiss.txt.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation import kmeans as subject
from utils.run import provenance

SIZES = ((50_000, 512, 1000), (50_000, 128, 100))  # N, D, K


def features(n: int, d: int, k: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(k, d, generator=g)
    return (0.5 * centres[torch.randint(k, (n,), generator=g)] + torch.randn(n, d, generator=g)).relu()


def seconds(run: Any, *args: Any) -> float:
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


def iteration(backend: str, x: Tensor, begin: Tensor, prints: Tensor) -> float:
    run = subject.BACKENDS[backend]
    one, three = (seconds(run, begin, x, prints, times, "") for times in (1, 3))
    return (three - one) / 2


def starts(x: Tensor, k: int, prints: Tensor, rounds: int) -> dict[str, float]:
    """Start -> median seconds."""

    def once(start: str) -> float:
        return seconds(subject._start, x, k, start, prints, torch.Generator().manual_seed(0), subject.CPU)

    return {start: statistics.median(once(start) for _ in range(rounds)) for start in subject.STARTS}


def measure(n: int, d: int, k: int, rounds: int) -> dict[str, Any]:
    x = features(n, d, k)
    prints = subject._checked(x, k, 1, subject.CPU)
    begin = x[subject._start(x, k, "subset", prints, torch.Generator().manual_seed(0), subject.CPU)]
    taken = [{backend: iteration(backend, x, begin, prints) for backend in subject.BACKENDS} for _ in range(rounds)]
    medians = {backend: statistics.median(row[backend] for row in taken) for backend in subject.BACKENDS}
    return {
        "N, D, K": [n, d, k],
        "seconds": medians,
        "ratio": statistics.median(row["torch"] / row["faiss"] for row in taken),
        "objective after 10": {b: subject._from(begin, x, prints, 10, b).objective[-1] for b in subject.BACKENDS},
        "seconds of a start": starts(x, k, prints, rounds),
        "rounds": taken,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(f"{device}, torch {torch.__version__}; seconds, medians of {args.rounds}\n")
    print(f"{'N, D, K':<20} {'torch':>8} {'faiss':>8} {'ratio':>6} {'objectives after 10':>24} {'starts':>17}")
    rows = []
    for size in SIZES:
        row = measure(*size, args.rounds)
        time_of, objective, start = row["seconds"], row["objective after 10"], row["seconds of a start"]
        print(
            f"{', '.join(map(str, size)):<20} {time_of['torch']:>8.3f} {time_of['faiss']:>8.3f} {row['ratio']:>6.2f} "
            f"{objective['torch']:>12.4f}{objective['faiss']:>12.4f} {start['kmeans++']:>9.3f} {start['subset']:>7.3f}",
            flush=True,
        )
        rows.append(row)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"device": device, "rows": rows} | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()
