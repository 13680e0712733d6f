"""The plots of docs, drawn from the ledger: the same ledger gives the same files.

A point is the mean over seeds; a band or bar around it is the standard deviation, where a row has several seeds.
"""

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from results.rows import CLAIMS, METHODS
from results.scores import values
from results.tables import FIRST, ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = ROOT / "docs" / "images"
BLUE, RED, GREEN, YELLOW, GRAY = "#4477aa", "#cc4455", "#228833", "#aa8800", "#777777"
COLORS = {"simclr": BLUE, "supcon": BLUE, "nnclr": RED, "swav": GREEN, "rotnet": YELLOW}  # by the method of a row
BASELINES = (("raw pixels", "raw pixels", GRAY), ("untrained", ", untrained", RED))


def methods_plot(path: Path) -> None:
    """kNN of every method with the range of its seeds, the best on top, beside raw pixels and the untrained network."""
    found = {row.title: values("methods", name, ["-evaluated"]).get("knn_20", []) for name, row in METHODS.items()}
    shown = sorted(((title, knn) for title, knn in found.items() if knn), key=lambda item: statistics.fmean(item[1]))
    if not shown:
        return
    with svg_settings():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 0.6 + 0.22 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for y, (title, knn) in enumerate(shown):
            axes.plot([min(knn), max(knn)], [y, y], color=BLUE, linewidth=5, alpha=0.35, solid_capstyle="round")
            axes.plot(knn, [y] * len(knn), "o", color=BLUE, markersize=4, label=title)
        for title, network, color in BASELINES:
            if knn := values("methods", FIRST, ["-evaluated"], network).get("knn_20", []):
                mean = statistics.fmean(knn)
                axes.axvline(mean, color=color, linestyle="--", linewidth=1, label=title)
                axes.text(mean, len(shown) - 0.4, f" {title}", color=color, va="bottom", fontsize=8)
        axes.set_yticks(range(len(shown)), [title for title, _ in shown])
        figure.supxlabel("kNN 20, top-1 in per cent on the test images of CIFAR-10 (JPEG)", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        figure.savefig(path, metadata={"Date": None})


def claims_plot(path: Path) -> None:
    """What papers claim: curves over length, rate, queue, clusters and batch; what is on or off side by side."""
    if not any(claim_scores(name) for name in CLAIMS):
        return
    with svg_settings():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 6.5), layout="constrained")
        upper, lower = figure.subfigures(2, 1)
        panels = upper.subplot_mosaic([["length", "rate", "queue", "clusters", "batch"]])
        length = panels["length"]
        curve(length, "SimCLR", BLUE, {8: "simclr_short", 24: "simclr", 80: "simclr_long"})
        curve(length, "NNCLR", RED, {8: "nnclr_short", 24: "nnclr", 80: "nnclr_long"})
        curve(length, "NNCLR, 2 layers", YELLOW, {24: "nnclr_tuned", 80: "nnclr_tuned_long"})
        label_axes(length, "Length", "epochs of 10,000 images", (8, 24, 80))
        rate = panels["rate"]
        curve(rate, "SimCLR", BLUE, {0.004: "simclr", 0.008: "simclr_rate_8", 0.016: "simclr_rate_16"})
        curve(rate, "NNCLR", RED, {0.004: "nnclr_rate_4", 0.008: "nnclr_rate_8", 0.016: "nnclr_rate_16"})
        label_axes(rate, "Learning rate", "rate, with decay 0.01", (0.004, 0.008, 0.016))
        queue = panels["queue"]
        curve(queue, "NNCLR", RED, {512: "nnclr_queue_512", 4096: "nnclr", 9984: "nnclr_queue_9984"})
        level(queue, "SimCLR", BLUE, "simclr")
        label_axes(queue, "Queue", "embeddings in the queue", (512, 4096, 9984))
        clusters = panels["clusters"]
        curve(clusters, "ClusterFit", GREEN, {n: f"clusterfit_{n}" for n in (100, 500, 2000)})
        level(clusters, "its teacher RotNet", YELLOW, "rotnet")
        level(clusters, "RotNet, twice as long", BLUE, "rotnet_longer")
        level(clusters, "shuffled ids", GRAY, "clusterfit_shuffled")
        label_axes(clusters, "Clusters", "number of clusters", (100, 500, 2000))
        batch = panels["batch"]
        curve(batch, "SimCLR", BLUE, {64: "simclr_batch_64", 256: "simclr", 1024: "simclr_batch_1024"})
        label_axes(batch, "Batch", "images in a batch", (64, 256, 1024))
        pairs(lower.subplots(), ("simclr", "simclr_crops_only", "simclr_small_views", "supcon", "nnclr",
                                "nnclr_crops_only", "nnclr_tuned", "nnclr_tuned_no_predictor",
                                "nnclr_tuned_same_class", "swav", "swav_small_views", "rotnet",
                                "rotnet_colours"))  # fmt: skip
        figure.savefig(path, metadata={"Date": None})


def claim_scores(name: str) -> list[float]:
    """kNN of a row of CLAIMS on held-out images, one per seed."""
    return values("claims", name).get("knn_20", [])


def curve(axes: "Axes", label: str, color: str, rows: Mapping[float, str]) -> None:
    """Means of rows of CLAIMS over a number that varies, with a band of the deviation."""
    points = [(x, scores) for x, name in rows.items() if (scores := claim_scores(name))]
    if not points:
        return
    at = [x for x, _ in points]
    means = [statistics.fmean(scores) for _, scores in points]
    spread = [deviation(scores) for _, scores in points]
    axes.plot(at, means, "o-", color=color, label=label, markersize=4, linewidth=1.3)
    low = [mean - s for mean, s in zip(means, spread, strict=True)]
    high = [mean + s for mean, s in zip(means, spread, strict=True)]
    axes.fill_between(at, low, high, color=color, alpha=0.2, linewidth=0)


def level(axes: "Axes", label: str, color: str, name: str) -> None:
    """The mean of a row of CLAIMS as a line across, with a band of the deviation."""
    if scores := claim_scores(name):
        mean, spread = statistics.fmean(scores), deviation(scores)
        axes.axhline(mean, color=color, label=label, linestyle="--", linewidth=1.2)
        axes.axhspan(mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)


def pairs(axes: "Axes", names: Sequence[str]) -> None:
    """Means of rows of CLAIMS that were run, one below the other, with a bar of the deviation."""
    names = [name for name in names if claim_scores(name)]
    for y, name in enumerate(reversed(names)):
        scores, color = claim_scores(name), COLORS[name.split("_")[0]]
        mean = statistics.fmean(scores)
        axes.errorbar(mean, y, xerr=deviation(scores), fmt="o", color=color, markersize=5, capsize=3)
        axes.text(mean, y + 0.18, f"{mean:.1f}", color=color, ha="center", va="bottom", fontsize=8)
    axes.set_yticks(range(len(names)), [CLAIMS[name].title for name in reversed(names)])
    axes.set_ylim(-0.5, len(names) - 0.3)
    axes.set_xlabel("kNN 20, per cent")
    axes.set_title("Views, labels and heads", fontsize=10)
    axes.grid(axis="x", alpha=0.3)


def label_axes(axes: "Axes", title: str, label: str, ticks: Sequence[float]) -> None:
    """Titles, ticks and a logarithmic axis of a panel of curves."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(label)
    axes.set_ylabel("kNN 20, per cent")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def deviation(scores: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 for one seed, whose deviation is not known."""
    return statistics.stdev(scores) if len(scores) > 1 else 0.0


def svg_settings() -> contextlib.AbstractContextManager[None]:
    """matplotlib writes the same text for the same plot: fixed ids, letters as text; no spines at the top and right."""
    import matplotlib as mpl

    spines = {"axes.spines.top": False, "axes.spines.right": False}
    return mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none", "font.size": 9, **spines})


PLOTS: dict[str, Callable[[Path], None]] = {"methods.svg": methods_plot, "claims.svg": claims_plot}
