"""Memory and seconds of what surrounds training, computed for ImageNet-1k and for 100 million images.

    python3 -m bench.sizes

prints the table of docs/performance.md. Bytes are what the program allocates; seconds are arithmetic over the stated
throughputs, and nothing here was measured on a GPU.
"""

from dataclasses import dataclass

FLOPS = 50e12  # float32 products of one GPU, three quarters of an H100's 67e12
MEMORY = 3e12  # bytes/s of a GPU's memory
NETWORK = 45e9  # bytes/s at which a GPU takes part in an all-reduce between machines
DISK = 2e9  # bytes/s that a machine reads from its disk
FORWARD = 10_000  # images/s of one GPU: ResNet-50 at 224 pixels without gradients
DECODED = 444  # images/s of a core, row `grow-gpu` of the measurements
CORES = 16  # of the machine, for each GPU
GPUS = 8  # of a machine
PART = 2**24  # coordinates of a part, of which each rank has its share; utils/shares.py
TOP_PASSES = 4  # over the similarities: written by the product, read twice by topk, once for ties


@dataclass(frozen=True)
class Problem:
    """n: images. d: coordinates of a feature. k: clusters. queries: of kNN, with `neighbours` each. ranks: GPUs."""

    name: str
    n: int
    d: int
    k: int
    queries: int
    neighbours: int
    ranks: int

    @property
    def machines(self) -> int:
        return max(1, self.ranks // GPUS)


IMAGENET = Problem("ImageNet-1k, 8 GPUs", 1_281_167, 2048, 10_000, 50_000, 200, 8)
MILLIONS = Problem("100 million, 64 GPUs", 100_000_000, 2048, 250_000, 50_000, 200, 64)


def largest_share(p: Problem) -> int:
    """Rows of the rank that has most: whole parts of PART coordinates."""
    rows = PART // p.d
    parts = -(-p.n // rows)
    return min(p.n, -(-parts // p.ranks) * rows)


def sent_per_iteration(n: int, d: int, k: int) -> int:
    """Bytes that a rank gives to the all-reduce of an iteration of k-means: sums, sizes and a score for each part."""
    return 8 * (k * d + k + -(-n // max(1, PART // d)))


def memory(p: Problem) -> dict[str, float]:
    """Bytes by what they are for."""
    share = largest_share(p) * p.d * 4
    return {
        "features on disk, float32": p.n * p.d * 4,
        "features on disk, float16": p.n * p.d * 2,
        "features in memory for kNN and logistic regression, a machine": (p.n + p.queries) * p.d * 4,
        "the same with a copy for each of 8 processes": (p.n + p.queries) * p.d * 4 * GPUS,
        "k-means: rows of a rank, on its GPU": share,
        "k-means: centroids, float32": p.k * p.d * 4,
        "k-means: sums of an iteration, five of K x D in 8 bytes": 5 * p.k * p.d * 8,
        "k-means: hashes, distances and ids of all rows, host memory of a rank": p.n * (8 + 4 + 8),
        "k-means: given to the all-reduce of an iteration": sent_per_iteration(p.n, p.d, p.k),
        "kNN: bank of a rank, on its GPU": p.n * p.d * 4 / p.ranks,
        "kNN: neighbours found by a rank": p.queries * p.neighbours * 12,
    }


def seconds(p: Problem) -> dict[str, float]:
    """Seconds by what they are spent on."""
    share = largest_share(p)
    images = min(FORWARD, DECODED * CORES) * p.ranks
    products = 2 * share * p.k * p.d / FLOPS
    exchange = 2 * sent_per_iteration(p.n, p.d, p.k) / NETWORK
    similarities = p.queries * p.n / p.ranks
    return {
        "extraction: decoding on 16 cores a GPU, the slower side": p.n / images,
        "reading the features from the disk of a machine": p.n * p.d * 4 / p.machines / DISK,
        "k-means: products of an iteration": products,
        "k-means: all-reduce of an iteration": exchange,
        "k-means: 50 iterations": 50 * (products + exchange),
        "kNN: products": 2 * similarities * p.d / FLOPS,
        "kNN: passes over the similarities": TOP_PASSES * 4 * similarities / MEMORY,
    }


def _bytes(number: float) -> str:
    unit, name = next((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1, "B")) if number >= u)
    return f"{number / unit:.3g} {name}"


def _seconds(number: float) -> str:
    return f"{number / 60:.0f} min" if number >= 600 else f"{number:.2g} s" if number < 10 else f"{number:.0f} s"


def table(*problems: Problem) -> str:
    """The figures as a Markdown table, a column per problem."""
    lines = ["| " + " | ".join(["", *(p.name for p in problems)]) + " |", "|" + "---|" * (1 + len(problems))]
    for figures, written in ((memory, _bytes), (seconds, _seconds)):
        columns = [figures(p) for p in problems]
        lines += ["| " + " | ".join([name, *(written(c[name]) for c in columns)]) + " |" for name in columns[0]]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(IMAGENET, MILLIONS))
