"""Draw the tables and plots of README and docs from the ledger, and from nothing else.

A page names a table between two comments, `<!-- results: methods -->` and `<!-- /results -->`; what stands between them
is replaced.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results.rows import CLAIMS, METHODS, NETWORKS, SEARCHED, Row
from results.tables import LEDGER, PEER_METHODS, PEERS, ROOT, SEEDS, chosen_settings, read_record

PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "peers.md")
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- /results -->)", re.S)
ALL_LABELS = {"knn_20": "kNN 20", "logistic": "logistic"}
COLUMNS = {
    **ALL_LABELS,
    "logistic_10pct": "logistic, 10 %",
    "logistic_1pct": "logistic, 1 %",
}
LABEL_COLUMNS = {"linear_sgd": "linear (SGD)", "finetune_10pct": "fine-tuned, 10 %", "finetune_1pct": "fine-tuned, 1 %"}
TRANSFER_COLUMNS = {
    "knn_20": "kNN 20", "logistic": "logistic", "fewshot_5/mean": "5-shot", "fewshot_1/mean": "1-shot",
}  # fmt: skip
Values = Mapping[str, list[float]]  # key of a score -> its values, one per seed


def evaluated(record: Mapping[str, Any] | None, network: str = "") -> dict[str, float]:
    """Key -> value of the scores of one network in an evaluation's record: the pretrained one, or one by its title."""
    if record is None or not record["rows"]:
        return {}
    titles = [title for title in record["rows"] if title.endswith(network)]
    scores = record["rows"][titles[-1]]["scores"] if titles else {}
    return {key: score["value"] for key, score in scores.items()}


def values(table: str, name: str, suffixes: Sequence[str], network: str = "") -> Values:
    """The scores of a row over its seeds, and its seconds of pretraining."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        run = read_record(table, f"{name}-s{seed}")
        for suffix in suffixes:
            for key, value in evaluated(read_record(table, f"{name}-s{seed}{suffix}"), network).items():
                found.setdefault(key, []).append(value)
        if run is not None and run["kind"] in ("pretraining", "peer"):
            found.setdefault("seconds", []).append(run["seconds"])
    return found


def cell(numbers: Sequence[float] | None, decimals: int = 1) -> str:
    """Mean, with the standard deviation where there are several seeds; "-" where nothing was measured."""
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):.{decimals}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.{decimals}f}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def nothing(table: str) -> str:
    """What stands where a table has no row yet."""
    return f"No run is in the ledger yet. `python3 -m results run {table} --minutes 60` fills it.\n"


def line_of(heads: Sequence[str], found: Values, columns: Mapping[str, str]) -> list[str] | None:
    """A line of a table: heads, seeds, columns, seconds; None where no column has a value."""
    seeds = max((len(found[key]) for key in columns if key in found), default=0)
    cells = [cell(found.get(key)) for key in columns]
    return [*heads, str(seeds), *cells, cell(found.get("seconds"), 0)] if seeds else None


def table_of(
    table: str, rows: Mapping[str, Row], columns: Mapping[str, str], suffixes: Sequence[str]
) -> list[list[str]]:
    """A line for each row that has a run: title, seeds, columns, seconds."""
    lines = (line_of([f"{row.title} (`{name}`)"], values(table, name, suffixes), columns) for name, row in rows.items())
    return [line for line in lines if line]


def baselines(columns: Mapping[str, str]) -> list[list[str]]:
    """Raw pixels and the untrained network, as the first row of METHODS was evaluated beside them."""
    lines = []
    for title, network in (("raw pixels", "raw pixels"), ("untrained network", ", untrained")):
        found = values("methods", next(iter(METHODS)), ["-evaluated"], network)
        if line := line_of([title], found, columns):
            lines.append([*line[:-1], "-"])  # the seconds are those of the row's pretraining
    return lines


def methods_table() -> str:
    """Table 1: every method with equal budget, the best kNN first."""
    lines = table_of("methods", METHODS, COLUMNS, ["-evaluated"])
    if not lines:
        return nothing("methods")
    lines.sort(key=lambda line: -float(line[2].split()[0]))
    for line in lines:
        name = line[0].split("`")[1]
        settings = chosen_settings(METHODS[name].settings or name) or {}
        line.append(", ".join(f"{value:g}" for value in settings.values()))
    head = ["", "seeds", *COLUMNS.values(), "seconds", "rate, decay"]
    text = markdown(head, [*lines, *([*line, "-"] for line in baselines(COLUMNS))])
    return f"{text}\n![kNN of every method](images/methods.svg)\n"


def short_table() -> str:
    """Table 1 in short, for the README: the eight best rows by kNN, and the baselines."""
    columns = {"knn_20": "kNN 20", "logistic": "logistic", "logistic_1pct": "logistic, 1 % of labels"}
    lines = table_of("methods", METHODS, columns, ["-evaluated"])
    lines.sort(key=lambda line: -float(line[2].split()[0]))
    if not lines:
        return nothing("methods")
    return markdown(["", "seeds", *columns.values(), "seconds"], [*lines[:8], *baselines(columns)])


def search_table() -> str:
    """The search: kNN on held-out training images for every pair of rate and decay."""
    settings = list(zip(*SEARCHED.values(), strict=True))
    lines = []
    for name in METHODS:
        records = [read_record("search", f"{name}-lr{lr:g}-wd{decay:g}") for lr, decay in settings]
        scores = [record["scores"]["knn_20"]["value"] if record else None for record in records]
        known = [score for score in scores if score is not None]
        if known:
            best = max(known)
            shown = ["-" if s is None else f"**{s:.1f}**" if s == best else f"{s:.1f}" for s in scores]
            lines.append([f"`{name}`", *shown])
    head = ["", *(f"{lr:g}, {decay:g}" for lr, decay in settings)]
    return markdown(head, lines) if lines else nothing("search")


def networks_table() -> str:
    """Candidates for the network of the tables: weights are timm's, kNN is on held-out training images."""
    records = {name: read_record("networks", name) for name in NETWORKS}
    lines = [
        [f"`{name}`", f"{record['scores']['knn_20']['value']:.1f}", f"{record['seconds']:.0f}"]
        for name, record in records.items()
        if record
    ]
    return markdown(["", "kNN 20", "seconds"], lines) if lines else nothing("networks")


def labels_table() -> str:
    """Few labels: a linear classifier by SGD, and the whole network fine-tuned, beside training from scratch."""
    lines = [line[:-1] for line in table_of("labels", METHODS, LABEL_COLUMNS, ["-finetuned", "-linear"])]
    scratch = values("labels", "simclr", ["-finetuned"], ", untrained")
    if scratch:
        seeds = str(len(next(iter(scratch.values()))))
        lines.append(["from scratch (supervised)", seeds, *(cell(scratch.get(key)) for key in LABEL_COLUMNS)])
    text = markdown(["", "seeds", *LABEL_COLUMNS.values()], lines) if lines else nothing("labels")
    ceiling = f"\nAll labels, from scratch: {cell(scratch['finetune'])} %.\n" if "finetune" in scratch else ""
    return text + ceiling


def claims_table() -> str:
    """What papers claim: kNN on held-out training images."""
    lines = []
    for name, row in CLAIMS.items():
        records = [record for seed in SEEDS if (record := read_record("claims", f"{name}-s{seed}"))]
        found = {
            "knn_20": [record["scores"]["knn_20"]["value"] for record in records],
            "seconds": [record["seconds"] for record in records],
        }
        if line := line_of([f"{row.title} (`{name}`)"], found, {"knn_20": "kNN 20"}):
            lines.append(line)
    return markdown(["", "seeds", "kNN 20", "seconds"], lines) if lines else nothing("claims")


def transfer_table() -> str:
    """The networks of table 1 on digits."""
    lines = []
    for name, row in METHODS.items():
        found = evaluated(read_record("transfer", f"{name}-s0"))
        if found:
            lines.append([f"{row.title} (`{name}`)", *(f"{found[key]:.1f}" for key in TRANSFER_COLUMNS)])
    return markdown(["", *TRANSFER_COLUMNS.values()], lines) if lines else nothing("transfer")


def peers_table() -> str:
    """Each method of the peers: ours with the settings of table 1, Lightly's, and ours with those of solo-learn."""
    lines = []
    for name in PEER_METHODS:
        sides = [("Lookalike", "methods", name), *((title, "peers", f"{peer}-{name}") for peer, title in PEERS.items())]
        for title, table, row in sides:
            if line := line_of([METHODS[name].title, title], values(table, row, ["-evaluated"]), ALL_LABELS):
                lines.append(line)
    peers_ran = any(line[1] != "Lookalike" for line in lines)
    return markdown(["", "", "seeds", *ALL_LABELS.values(), "seconds"], lines) if peers_ran else nothing("peers")


def gpu_table() -> str:
    """ResNet-18 with 100 epochs on a CUDA device."""
    lines = table_of("gpu", METHODS, ALL_LABELS, ["-evaluated"])
    return markdown(["", "seeds", *ALL_LABELS.values(), "seconds"], lines) if lines else nothing("gpu")


DRAWN: dict[str, Callable[[], str]] = {
    "methods": methods_table, "short": short_table, "search": search_table, "networks": networks_table,
    "labels": labels_table, "claims": claims_table, "transfer": transfer_table, "gpu": gpu_table, "peers": peers_table,
}  # fmt: skip


def drawn(page: Path) -> str:
    """The text of a page with every table made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{DRAWN[match[2]]()}{match[3]}", page.read_text())


def draw() -> None:
    """Write the tables of all pages, and the plot of the first one."""
    for page in PAGES:
        page.write_text(drawn(page))
    plot(ROOT / "docs" / "images" / "methods.svg")


def plot(path: Path) -> None:
    """kNN of every method with the range of its seeds, as SVG; the same ledger gives the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = {row.title: values("methods", name, ["-evaluated"]).get("knn_20", []) for name, row in METHODS.items()}
    shown = sorted(((title, knn) for title, knn in found.items() if knn), key=lambda item: statistics.fmean(item[1]))
    if not shown:
        return
    with mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.5, 0.6 + 0.22 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for y, (title, knn) in enumerate(shown):
            axes.plot([min(knn), max(knn)], [y, y], color="#4477aa", linewidth=5, alpha=0.35, solid_capstyle="round")
            axes.plot(knn, [y] * len(knn), "o", color="#4477aa", markersize=4, label=title)
        for title, network, color in (("raw pixels", "raw pixels", "#888888"), ("untrained", ", untrained", "#cc6677")):
            baseline = values("methods", next(iter(METHODS)), ["-evaluated"], network).get("knn_20", [])
            if baseline:
                axes.axvline(statistics.fmean(baseline), color=color, linestyle="--", linewidth=1, label=title)
                axes.text(
                    statistics.fmean(baseline), len(shown) - 0.4, f" {title}", color=color, va="bottom", fontsize=8
                )
        axes.set_yticks(range(len(shown)), [title for title, _ in shown])
        axes.set_xlabel("kNN 20, top-1 in per cent on the test images of CIFAR-10 (JPEG)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        figure.savefig(path, metadata={"Date": None})


def ledger_files() -> list[Path]:
    """Every record of the ledger."""
    return sorted(LEDGER.glob("*/*.json"))
