"""Draw the tables and plots of README and docs from the ledger, and from nothing else.

A page names a table between two comments, `<!-- results: methods -->` and `<!-- /results -->`; what stands between them
is replaced.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from results.plots import FOLDER, PLOTS
from results.rows import CLAIMS, METHODS, NETWORKS, SEARCHED, TRANSFER, Row
from results.scores import Values, values
from results.tables import FIRST, PEER_METHODS, PEER_VARIANTS, PEERS, ROOT, read_record, row_settings

PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "peers.md")
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- /results -->)", re.S)
ALL_LABELS = {"knn_20": "kNN 20", "logistic": "logistic"}
COLUMNS = {
    **ALL_LABELS,
    "logistic_10pct": "logistic, 10 %",
    "logistic_1pct": "logistic, 1 %",
}
BASELINES = {  # title -> row of METHODS that was evaluated beside it, and the end of its title in that record
    "raw pixels": (FIRST, "raw pixels"),
    "untrained network": (FIRST, ", untrained"),
    "untrained transformer": ("simclr_vit", ", untrained"),
}
LABEL_COLUMNS = {"linear_sgd": "linear (SGD)", "finetune_10pct": "fine-tuned, 10 %", "finetune_1pct": "fine-tuned, 1 %"}


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
    table: str, rows: Mapping[str, Row], columns: Mapping[str, str], suffixes: Sequence[str], names: str = "{}"
) -> list[list[str]]:
    """A line for each row that has a run: title, seeds, columns, seconds. names: how the ledger calls a row."""
    found = {name: values(table, names.format(name), suffixes) for name in rows}
    lines = (line_of([f"{row.title} (`{name}`)"], found[name], columns) for name, row in rows.items())
    return [line for line in lines if line]


def baselines(
    columns: Mapping[str, str], table: str = "methods", suffix: str = "-evaluated", names: str = "{}"
) -> list[list[str]]:
    """Raw pixels and the untrained networks. names: how the ledger calls a row."""
    found = {title: values(table, names.format(row), [suffix], network) for title, (row, network) in BASELINES.items()}
    lines = (line_of([title], scores, columns) for title, scores in found.items())
    return [[*line[:-1], "-"] for line in lines if line]  # the seconds are those of the row's pretraining


def methods_table() -> str:
    """Table 1: every method with equal budget, the best kNN first."""
    lines = table_of("methods", METHODS, COLUMNS, ["-evaluated"])
    if not lines:
        return nothing("methods")
    lines.sort(key=lambda line: -float(line[2].split()[0]))
    for line in lines:
        name = line[0].split("`")[1]
        line.append(", ".join(f"{value:g}" for value in (row_settings(name, METHODS[name]) or {}).values()))
    head = ["", "seeds", *COLUMNS.values(), "seconds", "rate, decay"]
    text = markdown(head, [*lines, *([*line, "-"] for line in baselines(COLUMNS))])
    return f"{text}{ceiling()}\n![kNN of every method](images/methods.svg)\n"


def short_table() -> str:
    """Table 1 in short, for the README: the eight best rows by kNN with settings of the search, and the baselines."""
    columns = {"knn_20": "kNN 20", "logistic": "logistic", "logistic_1pct": "logistic, 1 % of labels"}
    searched = {name: row for name, row in METHODS.items() if not row.rate}
    lines = table_of("methods", searched, columns, ["-evaluated"])
    lines.sort(key=lambda line: -float(line[2].split()[0]))
    if not lines:
        return nothing("methods")
    table = markdown(["", "seeds", *columns.values(), "seconds"], [*lines[:8], *baselines(columns)])
    return table + ceiling()


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
    if line := line_of(["from scratch (supervised)"], from_scratch(), LABEL_COLUMNS):
        lines.append(line[:-1])
    text = markdown(["", "seeds", *LABEL_COLUMNS.values()], lines) if lines else nothing("labels")
    return text + ceiling()


def from_scratch() -> Values:
    """What the network reaches without pretraining, fine-tuned on shares of the labels and on all."""
    return values("labels", FIRST, ["-finetuned"], ", untrained")


def ceiling() -> str:
    """What the network reaches with all labels and without pretraining; nothing where that was not measured."""
    scores = from_scratch().get("finetune")
    return f"\nCeiling, from scratch with all labels (50 epochs, one seed): {cell(scores)} %.\n" if scores else ""


def claims_table() -> str:
    """What papers claim: kNN on held-out training images."""
    lines = []
    for name, row in CLAIMS.items():
        found = values("claims", name)
        if line := line_of([f"{row.title} (`{name}`)"], found, {"knn_20": "kNN 20"}):
            lines.append(line)
    if not lines:
        return nothing("claims")
    return f"{markdown(['', 'seeds', 'kNN 20', 'seconds'], lines)}\n![What papers claim, as plots](images/claims.svg)\n"


def transfer_table() -> str:
    """The networks of table 1 on other images: a table for each kind of images."""
    tables = []
    for images, (_, columns) in TRANSFER.items():
        names = f"{{}}-{images}"
        lines = [*table_of("transfer", METHODS, columns, [""], names), *baselines(columns, "transfer", "", names)]
        if lines:
            tables.append(markdown([images, "seeds", *columns.values()], [line[:-1] for line in lines]))
    return "\n".join(tables) or nothing("transfer")


def peers_table() -> str:
    """Each method of the peers: ours with the settings of table 1, Lightly's, and ours with those of solo-learn."""
    lines = []
    for name in PEER_METHODS:
        sides = [("Lookalike", "methods", name)]
        sides += [(title, "methods", row) for row, title in PEER_VARIANTS.get(name, {}).items()]
        sides += [(title, "peers", f"{peer}-{name}") for peer, title in PEERS.items()]
        for title, table, row in sides:
            if line := line_of([METHODS[name].title, title], values(table, row, ["-evaluated"]), ALL_LABELS):
                lines.append(line)
    peers_ran = any(line[1] in PEERS.values() for line in lines)
    return markdown(["", "", "seeds", *ALL_LABELS.values(), "seconds"], lines) if peers_ran else nothing("peers")


def gpu_table() -> str:
    """The recipes of CIFAR-10 with 100 epochs on a CUDA device."""
    lines = table_of("gpu", METHODS, ALL_LABELS, ["-evaluated"])
    if not lines:
        return nothing("gpu")
    return markdown(["", "seeds", *ALL_LABELS.values(), "seconds"], [*lines, *baselines(ALL_LABELS, "gpu")])


DRAWN: dict[str, Callable[[], str]] = {
    "methods": methods_table, "short": short_table, "search": search_table, "networks": networks_table,
    "labels": labels_table, "claims": claims_table, "transfer": transfer_table, "gpu": gpu_table, "peers": peers_table,
}  # fmt: skip


def drawn(page: Path) -> str:
    """The text of a page with every table made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{DRAWN[match[2]]()}{match[3]}", page.read_text())


def draw() -> None:
    """Write the tables of all pages, and the plots."""
    for page in PAGES:
        page.write_text(drawn(page))
    for name, plot in PLOTS.items():
        plot(FOLDER / name)
